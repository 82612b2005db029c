"""The load test: real traffic against a real server, whose bytes are verified; see ``statepool loadtest --help``.

`run_load` starts client processes (`worker`), each with lanes (`lane`) that run cycles of operations at a pace
(`pace`), record latencies and errors (`record`) and check bytes against an oracle (`images`); `report` adds it all up.
"""
