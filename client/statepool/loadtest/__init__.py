"""The load test: real traffic against a real server, whose bytes are verified; see ``statepool loadtest --help``.

`run_load` starts client processes (`worker`), whose callers run at a pace (`pace`) and record latencies, counts and
errors (`record`) by slices of time (`slices`). There are two workloads (`options`):

* blocks: lanes (`lane`) run cycles of calls, and compare bytes with patterns (`images`);
* align: simulated engines (`engine`) serve requests (`requests`) in a continuous batch (`batch`), and their workers
  (`forward`) compare every state that they read with what a model would have left there (`states`).

`report` adds it all up, together with what the load test ran on (`facts`) and how full the pool was (`usage`), and
`thresholds` judges it. It is shown as text (`summary`), as a page (`page`, `charts`) and as a file, whose schema is
``report.schema.json``.
"""
