"""UltraLight VM-UNet: outline a skin lesion on any device.

    import ulvm
    segmenter = ulvm.load()
    segmentation = segmenter(ulvm.read_image("photo.jpg"))

Not a medical device.
"""

__version__ = "0.1.0"
