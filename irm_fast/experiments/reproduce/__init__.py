"""The paper's experiment for every method, under one protocol: `irm-fast reproduce`.

`population` holds the responses that logs are drawn from, `facts` what a method reads of a log, `methods` who competes,
and `fitting` how all of them are fitted and chosen. `contest` is one redraw of the log and `redraws` all of them, in
processes; `folder` says what is kept, and `table` and `picture` what comes of it.
"""
