"""``cocoseg view``: samples, mistakes, scores and runs in a browser, as other commands wrote them.

run.py          the server                 samples.py     the table of samples: filters, orders
sources.py      what each PATH is          evaluations.py scores of samples and classes
app.py          addresses, who may ask     quarantine.py  images that were left out
answers.py      what the page asks for     runs.py        records of training runs
pictures.py     images and masks           export.py      one file without a server
static/         the page: plain ES modules, one for each of its pages
"""
