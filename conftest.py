"""Only this repository's own: where pytester is, for the tests of the plugin itself."""

pytest_plugins = ["pytester"]
