"""One property under atheris: `python -m tests.fuzz.target requests [words for libFuzzer]`.

It ends with the first input that breaks the property, which libFuzzer writes to a file.
"""

import sys

import atheris

with atheris.instrument_imports(include=["sidecar.http1"]):  # before anything else imports them
    import sidecar.http1.request
    import sidecar.http1.response  # noqa: F401

from tests.fuzz.properties import PROPERTIES


def main() -> None:
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, PROPERTIES[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
