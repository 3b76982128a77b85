"""Tests; a package, because a dependency installs one of the same name, which would hide a mere folder."""
