"""Tables, plots, a verdict in words and an HTML page, from the files of a run alone."""
