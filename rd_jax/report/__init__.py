"""What people look at: tables, figures, heatmaps, the page."""
