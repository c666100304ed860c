"""`python -m mesh` is `headgate`."""

from mesh.cli import main

main()
