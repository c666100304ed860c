"""`headgate bench`: open-loop load on one server, and what its callers saw, per class.

A run lasts `--duration` and until the last caller has its answer or has lost patience. Every figure is about
those who arrived within it; the server is warm or not, as it was found.
"""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer
import uvloop

from mesh import exits
from mesh.bench import report
from mesh.bench.clients import Target, drive
from mesh.bench.origin import Origin
from mesh.bench.score import Result, score
from mesh.bench.workload import PROMPT, RETRIES, STOCK, Ask, Lengths, Traffic, arrivals, stock

_ANSWERS_WITHIN_S: Final = 10.0
_LAGGING_MS: Final = 20.0

app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the command line says."""

    url: str
    model: str | None
    rate: float
    duration: float
    shares: dict[str, float]
    keys: dict[str, str]
    prompt: Lengths
    answer: int | None
    stream: bool
    retries: int
    patience: float | None  # None: as each class has it
    seed: int

    def traffic(self) -> list[Traffic]:
        """The classes that are asked for, with their part of the rate."""
        total = sum(self.shares.values())
        return [
            stock(
                cls,
                self.rate * share / total,
                key=self.keys.get(cls, self.keys.get("", "")),
                prompt=self.prompt,
                answer=self.answer,
                stream=self.stream,
                retries=self.retries,
                patience_s=STOCK[cls].patience_s if self.patience is None else self.patience,
            )
            for cls, share in self.shares.items()
        ]

    def about(self, model: str) -> dict[str, Any]:
        """What was asked for, without keys."""
        return {
            "url": self.url,
            "model": model,
            "rate": self.rate,
            "duration_s": self.duration,
            "classes": self.shares,
            "prompt": {"median": self.prompt.median, "sigma": self.prompt.sigma, "most": self.prompt.most},
            "answer": self.answer,
            "stream": self.stream,
            "retries": self.retries,
            "patience_s": self.patience,
            "seed": self.seed,
        }


@app.callback(help="Load an OpenAI-compatible server, and show how well each class of callers is served.")
def bench(
    context: typer.Context,
    url: Annotated[str, typer.Option(help="The server: a gateway, a sidecar or an engine.")] = (
        "http://127.0.0.1:8000"
    ),
    model: Annotated[str | None, typer.Option(help="Its model; the first it lists if absent.")] = None,
    rate: Annotated[float, typer.Option(min=0.001, help="New requests a second.")] = 5.0,
    duration: Annotated[float, typer.Option(min=0.1, help="Seconds in which they arrive.")] = 30.0,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME=SHARE", help="Part of the rate; repeat. Default: 20/50/30 %."),
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]KEY", help="Bearer token of one class, or of all; repeat."),
    ] = None,
    prompt: Annotated[int, typer.Option(min=1, help="Median prompt, in tokens.")] = int(PROMPT.median),
    prompt_sigma: Annotated[float, typer.Option(min=0, max=5, help="Its log-normal spread; 0: none.")] = (
        PROMPT.sigma
    ),
    prompt_max: Annotated[int, typer.Option(min=1, help="Longest prompt, in tokens.")] = PROMPT.most,
    answer: Annotated[
        int | None, typer.Option(min=1, help="max_tokens; the server's choice if absent.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Token by token, or whole.")] = True,
    retries: Annotated[int, typer.Option(min=0, help="Repeats, as the OpenAI SDK does them.")] = RETRIES,
    patience: Annotated[
        float | None,
        typer.Option(min=0.1, help="Seconds to the first token, or to a whole answer. Default: 5, 10, 60."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed asks the same at the same times.")] = 0,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write every figure; - is stdout.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw a picture into it.")] = None,
) -> None:
    if context.invoked_subcommand is not None:
        return
    wanted = Wanted(
        url=url,
        model=model,
        rate=rate,
        duration=duration,
        shares=_shares(classes or []),
        keys=_keys(key or []),
        prompt=Lengths(prompt, prompt_sigma, prompt_max),
        answer=answer,
        stream=stream,
        retries=retries,
        patience=patience,
        seed=seed,
    )
    try:
        run(wanted, json_file, plots)
    except (report.NoPlots, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    except OSError as error:
        typer.echo(f"headgate bench: {error}", err=True)
        raise typer.Exit(exits.FAILED) from None


def run(wanted: Wanted, json_file: str | None, plots: Path | None) -> None:
    """Measure and show; raises OSError when the server cannot be reached or a file not be written."""
    if plots is not None:
        report.plotter()
    traffic = wanted.traffic()
    model = wanted.model or first_model(wanted.url, traffic[0].key)
    asks = arrivals(traffic, wanted.duration, wanted.seed)
    origins = _drive(asks, wanted.url, model)
    found = score(origins, capacity=None, from_s=0.0, to_s=wanted.duration)
    notes = []
    if found.lag_p99_ms > _LAGGING_MS:
        notes.append(f"callers began up to {found.lag_p99_ms:.0f} ms late (p99): this machine was too busy")
    result = Result("bench", wanted.url, wanted.seed, found, notes)
    to_stdout = json_file == "-"
    terminal = report.terminal(stderr=to_stdout)
    terminal.print(report.by_class(found))
    if found.reasons:
        terminal.print(
            "tries that failed: " + ", ".join(f"{count} {why}" for why, count in found.reasons.items())
        )
    for note in report.notes([result]):
        terminal.print(note)
    written = report.to_json(wanted.about(model), [result])
    if to_stdout:
        typer.echo(written, nl=False)
    elif json_file is not None:
        Path(json_file).write_text(written)
    if plots is not None:
        for file in report.save_plots([result], plots):
            terminal.print(f"{file}")
    if not any(attempt.status for origin in origins for attempt in origin.attempts):
        raise OSError(f"{wanted.url}: no answer at all")


def _drive(asks: Sequence[Ask], url: str, model: str) -> list[Origin]:
    with report.progress() as bar:
        task = bar.add_task(f"{len(asks)} requests", total=1.0)
        return uvloop.run(
            drive(asks, [url], model=model, progress=lambda done: bar.update(task, completed=done))
        )


def first_model(url: str, key: str) -> str:
    """The first model this server lists; raises OSError when it lists none."""
    models_url = Target(url).url("models")
    request = urllib.request.Request(models_url, headers={"authorization": f"Bearer {key}"} if key else {})
    # As the callers will: they know no proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_ANSWERS_WITHIN_S) as answer:
            return str(json.load(answer)["data"][0]["id"])
    except urllib.error.HTTPError as error:
        with error:  # it is the answer too
            raise OSError(f"{models_url}: {error}") from None
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"{models_url}: {error}") from None
    except (ValueError, LookupError, TypeError):
        raise OSError(f"{models_url}: no list of models; say --model") from None


def _shares(words: Sequence[str]) -> dict[str, float]:
    """What --class says; the stock mix when it says nothing."""
    if not words:
        return {cls: each.share for cls, each in STOCK.items()}
    shares = {}
    for word in words:
        cls, _, share = word.partition("=")
        if cls not in STOCK:
            raise typer.BadParameter(f"--class {word}: the classes are {', '.join(STOCK)}")
        try:
            shares[cls] = float(share)
        except ValueError:
            raise typer.BadParameter(f"--class {word}: {share!r} is no number, as in {cls}=0.2") from None
        if not 0 < shares[cls] < float("inf"):
            raise typer.BadParameter(f"--class {word}: the share must be above 0")
    return shares


def _keys(words: Sequence[str]) -> dict[str, str]:
    """What --key says; under "" for every class that has no other."""
    keys = {}
    for word in words:
        cls, equals, key = word.partition("=")
        if not equals or cls not in STOCK:  # a key may hold a = itself
            cls, key = "", word
        if not key.isascii() or not key.isprintable() or " " in key:
            raise typer.BadParameter("--key: a key is printable ASCII without spaces")
        keys[cls] = key
    return keys
