"""Intervals of a training whose clock counts the images seen by the generator, not steps."""


class ImageInterval:
    """Reports when the number of images seen passes a multiple of `every_images`.

    Call `start` when the training starts or resumes, then `passed` once after every batch:

        def on_train_start(self, trainer, pl_module):
            self.interval.start(pl_module.images_seen)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if self.interval.passed(pl_module.images_seen):
                ...

    Args:
        every_images: length of the interval, at least 1.
    """

    def __init__(self, every_images: int):
        self.every_images = every_images
        self._images_before = 0

    def start(self, images_seen: int) -> None:
        """Begin counting at `images_seen`: 0, or the images seen by the training that is resumed."""
        self._images_before = images_seen

    def passed(self, images_seen: int) -> bool:
        """Whether a multiple of `every_images` lies in (images seen at the previous call, `images_seen`]."""
        images_before, self._images_before = self._images_before, images_seen
        return images_seen // self.every_images > images_before // self.every_images
