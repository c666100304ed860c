"""`python -m mesh.bench`, which `headgate bench` becomes."""

from mesh import exits
from mesh.bench import overload
from mesh.bench.command import app
from mesh.bench.faults import command as faults

app.command("overload")(overload.command)
app.command("faults")(faults.command)

if __name__ == "__main__":
    exits.run(app, "headgate bench")
