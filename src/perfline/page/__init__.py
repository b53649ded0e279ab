"""What does a person look at to settle a regression?

``perfline report``: one HTML page, or Markdown.
"""
