"""Tables, figures, heatmaps and pages for people to look at."""
