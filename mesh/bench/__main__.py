"""`python -m mesh.bench`, which `headgate bench` becomes."""

from mesh import exits
from mesh.bench import overload
from mesh.bench.command import app

app.command("overload")(overload.command)

if __name__ == "__main__":
    exits.run(app, "headgate bench")
