"""Embedded teachers of earlier versions, which others have replaced. Imports nothing, for verbs that start fast."""

# Digest of the embedded teacher of an earlier version -> the last version that had it.
EARLIER = {"1db48804d33be70446f5a30237874ac8": "0.3"}


def remedy_for(made_with: str, otherwise: str) -> str:
    """What to do about pairs or a checkpoint of another teacher than the present one, for the end of a message.

    Args:
        made_with: digest of the teacher that made them.
        otherwise: the advice if that is no embedded teacher of an earlier version.
    """
    if (version := EARLIER.get(made_with)) is None:
        return otherwise
    return (
        f"it was the glyph teacher of version {version}: move the folders of its pairs and runs away and make both "
        f"again, or keep using version {version}"
    )
