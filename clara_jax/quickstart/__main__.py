"""Write files of the invented encyclopedia.

    python -m clara_jax.quickstart DIR [--records stages|pretraining|encyclopedia] ...

DIR/data then holds JSONL files in the stages' formats, which any experiment can name as
``data.train`` and ``data.eval``.
"""

import dataclasses
from collections.abc import Sequence

from clara_jax.commands import Parser, run, start
from clara_jax.quickstart.outputs import Settings, prepare


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = Parser(
        "python -m clara_jax.quickstart",
        description="Write files of an invented encyclopedia.",
    )
    parser.add_argument("workdir", metavar="DIR", help="files go to DIR/data")
    for field in dataclasses.fields(Settings):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            default=field.default,
            help=f"see clara_jax.quickstart.Settings; default: {field.default}",
        )
    settings = vars(parser.parse_args(argv))
    workdir = settings.pop("workdir")

    def write() -> None:
        for path in sorted(prepare(workdir, settings).glob("*.jsonl")):
            with path.open(encoding="utf-8") as file:
                print(f"{path}: {sum(1 for _ in file)} records")

    return run(write)


if __name__ == "__main__":
    start(main)
