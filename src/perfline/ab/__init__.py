"""The text of ``perfline compare``, and its command."""
