"""Reports of finished runs and evaluations: tables, verdicts, figures and one HTML page.

`report` writes them; `text`, `tables` and `recommendation` may be imported anywhere above.
"""
