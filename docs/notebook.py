"""Runs the cells of docs/notebook.ipynb and writes their outputs into it: `python -m docs.notebook`."""

import ast
import base64
import io
import json
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import matplotlib as mpl

PAGE = Path(__file__).parent / "notebook.ipynb"


def run(cells: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The outputs of each cell of code, all in one namespace: what it prints, its last value, its figures."""
    with mpl.rc_context({"backend": "agg", "figure.dpi": 80}):
        namespace: dict[str, Any] = {}
        for number, cell in enumerate((cell for cell in cells if cell["cell_type"] == "code"), start=1):
            yield list(outputs("".join(cell["source"]), namespace, number=number))


def outputs(source: str, namespace: dict[str, Any], *, number: int) -> Iterator[dict[str, Any]]:
    import matplotlib.pyplot as plt

    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, f"cell {number}", "exec"), namespace)
        value = last and eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
    if printed.getvalue():
        yield {"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(keepends=True)}
    for figure in map(plt.figure, plt.get_fignums()):
        picture = io.BytesIO()
        figure.savefig(picture, format="png", metadata={"Software": None})
        plt.close(figure)
        data = {"image/png": base64.b64encode(picture.getvalue()).decode()}
        yield {"output_type": "display_data", "metadata": {}, "data": data}
    if value is not None:
        data = {"text/plain": shown(value).splitlines(keepends=True)}
        yield {"output_type": "execute_result", "metadata": {}, "execution_count": number, "data": data}


def shown(value: Any) -> str:
    """A list has a line for each item, as in Jupyter."""
    return "[" + ",\n ".join(map(repr, value)) + "]" if isinstance(value, list) else repr(value)


def main() -> None:
    notebook = json.loads(PAGE.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, made) in enumerate(zip(code, run(code), strict=True), start=1):
        cell["execution_count"], cell["outputs"] = number, made
    PAGE.write_text(json.dumps(notebook, indent=1) + "\n")


if __name__ == "__main__":
    main()
