"""`python -m benchmarks.tables {debd,uci,impute,anomaly} [--only NAME ...] [--minutes M] [--threads N]`.

Each data set's result is a file in results/tables; what is there already, of the same minutes and threads, is not
measured again, so that an interrupted run goes on, and several runs with a thread each can share the work. Afterwards
the Markdown tables beside them are written anew. Data lies in the folder of DEFORMER_DATA.
"""

import argparse
import json
import os
from pathlib import Path

import torch

from benchmarks.machine import RESULTS, circumstances, counted, keep
from benchmarks.tables import anomaly, density, imputation
from deformer.train.process import keep_memory

TASKS = {
    "debd": (density.DEBD, density.measure_debd, density.table_debd, 30.0),
    "uci": (density.UCI, density.measure_uci, density.table_uci, 20.0),
    "impute": (imputation.CASES, imputation.measure, imputation.table, 3.0),
    "anomaly": (anomaly.SETS, anomaly.measure, anomaly.table, 1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--only", nargs="*", help="some of the data sets")
    parser.add_argument("--minutes", type=float, help="of training per data set; the default depends on the task")
    parser.add_argument("--output", type=Path, default=RESULTS / "tables")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    names, measure, table, minutes = TASKS[chosen.task]
    wanted = {"minutes": chosen.minutes or minutes, "threads": chosen.threads}
    data, folder = Path(os.environ.get("DEFORMER_DATA", "data")), chosen.output / chosen.task
    folder.mkdir(parents=True, exist_ok=True)
    keep_memory()
    for name in chosen.only or names:
        path = folder / f"{name}.json"
        if counted(path, wanted) is None:
            keep(path, {**measure(data, name, wanted["minutes"]), "wanted": wanted, "machine": circumstances()})
        print(name, path.read_text())
    results = {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}
    (chosen.output / f"{chosen.task}.md").write_text(table(data, results))
    print((chosen.output / f"{chosen.task}.md").read_text())


if __name__ == "__main__":
    main()
