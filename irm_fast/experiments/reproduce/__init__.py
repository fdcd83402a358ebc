"""The paper's experiment for every method, under one protocol: `irm-fast reproduce`.

`population` (what logs are drawn from), `methods` (who competes), `fitting` (how all of them are fitted and chosen),
`contest` (one redraw of the log), `run` (all of them, in processes), `folder` (what is kept), `table` and `picture`.
"""
