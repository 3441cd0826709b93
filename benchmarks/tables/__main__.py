"""`python -m benchmarks.tables {debd,uci,impute,anomaly} [--only NAME ...] [--minutes M] [--threads N]`.

Each data set's result is a file in results/tables; what is there already is not measured again, so that an interrupted
run goes on, and several runs with a thread each can share the work. Afterwards the Markdown tables beside them are
written anew. Data lies in the folder of DEFORMER_DATA.
"""

import argparse
import json
import os
from pathlib import Path

import torch

from benchmarks.machine import RESULTS, circumstances
from benchmarks.tables import anomaly, density, imputation
from deformer.train.process import keep_memory

TASKS = {
    "debd": (density.DEBD, density.measure_debd, density.table_debd),
    "uci": (density.UCI, density.measure_uci, density.table_uci),
    "impute": (imputation.CASES, imputation.measure, imputation.table),
    "anomaly": (anomaly.SETS, anomaly.measure, anomaly.table),
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
    names, measure, table = TASKS[chosen.task]
    data, folder = Path(os.environ.get("DEFORMER_DATA", "data")), chosen.output / chosen.task
    folder.mkdir(parents=True, exist_ok=True)
    keep_memory()
    for name in chosen.only or names:
        path = folder / f"{name}.json"
        if not path.exists():
            result = measure(data, name, **({} if chosen.minutes is None else {"minutes": chosen.minutes}))
            path.write_text(json.dumps({**result, "machine": circumstances()}, indent=2) + "\n")
        print(name, path.read_text())
    results = {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}
    (chosen.output / f"{chosen.task}.md").write_text(table(data, results))
    print((chosen.output / f"{chosen.task}.md").read_text())


if __name__ == "__main__":
    main()
