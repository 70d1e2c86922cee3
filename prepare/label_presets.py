"""Classes of data sets whose label images many people have."""

# Source: The PASCAL Visual Object Classes Challenge 2012 Development Kit, section 3.
VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
# The 19 classes in the order of their train ids: name, id in ..._labelIds.png, color in
# ..._color.png. Source: cityscapesScripts, `helpers/labels.py`.
CITYSCAPES = (
    ("road", 7, 0x804080),
    ("sidewalk", 8, 0xF423E8),
    ("building", 11, 0x464646),
    ("wall", 12, 0x66669C),
    ("fence", 13, 0xBE9999),
    ("pole", 17, 0x999999),
    ("traffic light", 19, 0xFAAA1E),
    ("traffic sign", 20, 0xDCDC00),
    ("vegetation", 21, 0x6B8E23),
    ("terrain", 22, 0x98FB98),
    ("sky", 23, 0x4682B4),
    ("person", 24, 0xDC143C),
    ("rider", 25, 0xFF0000),
    ("car", 26, 0x00008E),
    ("truck", 27, 0x000046),
    ("bus", 28, 0x003C64),
    ("train", 31, 0x005064),
    ("motorcycle", 32, 0x0000E6),
    ("bicycle", 33, 0x770B20),
)
CITYSCAPES_IDS = range(34)
CITYSCAPES_IGNORED_COLORS = (
    *(0x000000, 0x6F4A00, 0x510051, 0xFAAAA0, 0xE6968C, 0xB4A5B4, 0x966464, 0x96785A),
    *(0x00005A, 0x00006E),
)
