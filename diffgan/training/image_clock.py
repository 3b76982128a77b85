"""The clock of a distillation counts images."""


def passed(every_images: int, images_seen: int, batch: int) -> bool:
    """Whether the images seen passed a multiple of `every_images` in the batch that has just ended.

    Args:
        every_images: the interval.
        images_seen: after the batch, over all processes.
        batch: images of that batch, over all processes.
    """
    return images_seen // every_images > (images_seen - batch) // every_images
