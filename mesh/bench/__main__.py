"""`python -m mesh.bench`, which `headgate bench` becomes."""

from mesh import exits
from mesh.bench.command import app

if __name__ == "__main__":
    exits.run(app, "headgate bench")
