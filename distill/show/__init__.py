"""What a person looks at: pictures, charts, the explorer, and the checks of the course's exercises."""
