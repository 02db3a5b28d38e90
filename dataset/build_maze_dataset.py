r"""Build a dataset of mazes from CSV files such as those of Maze-30x30-hard.

    python -m dataset.build_maze_dataset --output-dir data/maze --csv train.csv --test-csv test.csv

Training mazes come with `--num-aug` of their seven turned and reflected variants each, a group
together; test mazes come as they are, and none is the board of a training maze or variant.
`dataset.board_csv` says what a CSV file looks like and how mazes are drawn from it: '#' is a wall,
a space is free, 'S' the start, 'G' the goal, and 'o', in the solution, a cell of the path. Every
solution is checked: it must mark one shortest path.
"""

import logging

from pydantic import Field

from common.errors import exit_cleanly
from common.flags import parse_flags
from common.settings import InputFile
from dataset import maze
from dataset.board_csv import draw_halves
from dataset.build_boards import PuzzleOptions, Summary, build_from_puzzles


class BuildOptions(PuzzleOptions):
    """The command's flags."""

    num_aug: int = Field(
        maze.MOST_VARIANTS,
        ge=0,
        le=maze.MOST_VARIANTS,
        description="variants per training maze besides itself",
    )
    csv: tuple[InputFile, ...] = Field(title="FILE", description="import these files' mazes")


def build(options: BuildOptions) -> Summary:
    """Build the dataset; `options.output_dir` appears only when it is complete.

    Raises:
        UserError: bad input files, or too few mazes in them.
    """
    train, test = draw_halves(options, maze.ALPHABET, maze.RULES)
    return build_from_puzzles(options, "maze", maze.VOCAB_SIZE, train, test, maze.draw_variants)


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build(parse_flags(BuildOptions, "python -m dataset.build_maze_dataset", __doc__))


if __name__ == "__main__":
    main()
