"""What readers see: pictures, charts, the explorer, and the checks of the course's exercises."""
