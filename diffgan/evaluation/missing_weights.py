"""The weights that the metrics of a protocol need and that are not on this machine, before anything runs."""

from diffgan.evaluation.protocols.coco import CocoProtocol


def missing_weights(protocol: CocoProtocol) -> list[str]:
    """Files and packages that the networks of the listed metrics need and that are not on this machine.

    No network is loaded and nothing is downloaded; captions and real images are not read. The metrics against the
    teacher count too, which an evaluation without the teacher's images omits.

    Returns:
        One line each: the file, what it is, and the metrics that need it by their names in the protocol.
    """
    needed_by: dict[str, list[str]] = {}
    for name in protocol.listed:
        for line in protocol.metric(name).missing_weights():
            needed_by.setdefault(line, []).append(name)
    return [f"{line}; for {', '.join(names)}" for line, names in needed_by.items()]
