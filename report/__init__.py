"""HTML reports: self-contained pages that need no network and no server; one script sorts tables.

page.py    a page of sections   blocks.py      tables, figures, pictures
markup.py  escaped elements     charts.py      bars and histograms, as SVG
style.py   the style sheet      comparison.py  pictures side by side
thumbnails.py, choice.py, classes.py, confusion.py, reliability.py, sizes.py: parts of reports
"""
