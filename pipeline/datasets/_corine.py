"""The classes of BigEarthNet: 43 of CORINE Land Cover with their codes, and the 19 that its authors made of 32 of them.

Order and grouping: Sumbul et al. 2021, as their published label indices have them.
"""

_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Urban fabric", ("Continuous urban fabric", "Discontinuous urban fabric")),
    ("Industrial or commercial units", ("Industrial or commercial units",)),
    ("Arable land", ("Non-irrigated arable land", "Permanently irrigated land", "Rice fields")),
    ("Permanent crops", (
        "Vineyards", "Fruit trees and berry plantations", "Olive groves", "Annual crops associated with permanent crops",
    )),
    ("Pastures", ("Pastures",)),
    ("Complex cultivation patterns", ("Complex cultivation patterns",)),
    ("Land principally occupied by agriculture, with significant areas of natural vegetation", (
        "Land principally occupied by agriculture, with significant areas of natural vegetation",
    )),
    ("Agro-forestry areas", ("Agro-forestry areas",)),
    ("Broad-leaved forest", ("Broad-leaved forest",)),
    ("Coniferous forest", ("Coniferous forest",)),
    ("Mixed forest", ("Mixed forest",)),
    ("Natural grassland and sparsely vegetated areas", ("Natural grassland", "Sparsely vegetated areas")),
    ("Moors, heathland and sclerophyllous vegetation", ("Moors and heathland", "Sclerophyllous vegetation")),
    ("Transitional woodland, shrub", ("Transitional woodland/shrub",)),
    ("Beaches, dunes, sands", ("Beaches, dunes, sands",)),
    ("Inland wetlands", ("Inland marshes", "Peatbogs")),
    ("Coastal wetlands", ("Salt marshes", "Salines")),
    ("Inland waters", ("Water courses", "Water bodies")),
    ("Marine waters", ("Coastal lagoons", "Estuaries", "Sea and ocean")),
)  # fmt: skip
CLASSES_19 = tuple(name for name, _ in _GROUPS)
CLASSES_43 = (
    "Continuous urban fabric", "Discontinuous urban fabric", "Industrial or commercial units",
    "Road and rail networks and associated land", "Port areas", "Airports", "Mineral extraction sites", "Dump sites",
    "Construction sites", "Green urban areas", "Sport and leisure facilities", "Non-irrigated arable land",
    "Permanently irrigated land", "Rice fields", "Vineyards", "Fruit trees and berry plantations", "Olive groves", "Pastures",
    "Annual crops associated with permanent crops", "Complex cultivation patterns",
    "Land principally occupied by agriculture, with significant areas of natural vegetation", "Agro-forestry areas",
    "Broad-leaved forest", "Coniferous forest", "Mixed forest", "Natural grassland", "Moors and heathland",
    "Sclerophyllous vegetation", "Transitional woodland/shrub", "Beaches, dunes, sands", "Bare rock",
    "Sparsely vegetated areas", "Burnt areas", "Inland marshes", "Peatbogs", "Salt marshes", "Salines", "Intertidal flats",
    "Water courses", "Water bodies", "Coastal lagoons", "Estuaries", "Sea and ocean",
)  # fmt: skip
CODES_43 = (
    111, 112, 121, 122, 123, 124, 131, 132, 133, 141, 142, 211, 212, 213, 221, 222, 223, 231, 241, 242, 243, 244,
    311, 312, 313, 321, 322, 323, 324, 331, 332, 333, 334, 411, 412, 421, 422, 423, 511, 512, 521, 522, 523,
)  # fmt: skip
GROUP_OF = {member: CLASSES_19.index(name) for name, members in _GROUPS for member in members}
GROUP_OF_CODE = {code: GROUP_OF[name] for code, name in zip(CODES_43, CLASSES_43, strict=True) if name in GROUP_OF}
