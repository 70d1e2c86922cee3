"""``cocoseg view``: samples, mistakes and scores in a browser, from what other commands wrote.

run.py       the server               samples.py   the table of samples: filters and orders
sources.py   what each PATH is        pictures.py  images and masks for the page
app.py       addresses → answers      static/      the page: plain ES modules
"""
