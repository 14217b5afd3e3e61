"""What the suite costs beside its peers: each benchmark measures both in one run and checks that they compute the same.

`eval`, `train`, `startup` and `scale` are the benchmarks; ``scripts/bench_*`` run them. Each side of a comparison is a
process of its own (`side`), so that its peak memory is its own; the sides take turns and never run at the same time
(`comparison`). One line of JSON on standard output has the result, standard error tells what is going on.
"""
