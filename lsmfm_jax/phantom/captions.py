"""Captions of generated volumes: several wordings for each kind, in the style of a figure legend."""

CAPTIONS: dict[str, tuple[str, ...]] = {
    "nuclei": (
        "Light-sheet fluorescence microscopy patch of a cleared adult mouse brain stained with a "
        "nuclear dye. Cell nuclei appear as small, compact ellipsoids of a few voxels across, "
        "bright against a dim autofluorescent background. They crowd into layers and thin out "
        "between them, tracing the local cell density.",
        "A cleared mouse brain was counterstained for DNA and imaged by light-sheet microscopy. "
        "The volume is filled with many separate rounded nuclei of uneven brightness, packed "
        "densely in some bands and loosely in others.",
        "Nuclear labelling in a three-dimensional light-sheet volume of optically cleared brain "
        "tissue. Each nucleus is a short, smooth blob; neighbouring nuclei touch but seldom "
        "merge. Dark gaps mark unlabelled vessels and neuropil.",
        "This fluorescence volume from a cleared rodent brain shows a pan-nuclear stain. The "
        "signal is confined to numerous punctate cell nuclei, giving a grainy, speckled texture "
        "that outlines the cytoarchitecture.",
        "Densely scattered cell nuclei in cleared cortical tissue, recorded with a light-sheet "
        "microscope. Nuclei differ in intensity and are blurred more along the optical axis than "
        "within the plane.",
    ),
    "plaques": (
        "Light-sheet fluorescence microscopy patch of a cleared transgenic mouse brain labelled "
        "for amyloid-beta plaques. A few rounded to irregular deposits with dense cores stand out "
        "from a bright, smoothly varying background. They lie scattered through the parenchyma, "
        "far from one another.",
        "Amyloid deposits in the brain of an Alzheimer's disease mouse model, made visible by a "
        "plaque dye and light-sheet imaging. Plaques are isolated clumps with fuzzy rims; most of "
        "the volume is unlabelled tissue with faint stripes.",
        "Three-dimensional light-sheet volume of cleared brain with sparse extracellular amyloid "
        "aggregates. Each aggregate has a compact bright centre and a weak halo. Fibre tracts "
        "contribute broad autofluorescent bands.",
        "Staining for amyloid plaques in intact cleared brain tissue. The deposits are compact, "
        "high-intensity spots of varied size, sparsely distributed, over uneven autofluorescence.",
        "A handful of amyloid-beta plaques in a cleared mouse brain imaged with a light sheet. "
        "They form ragged bright bodies several voxels wide and show modest contrast to the "
        "surrounding tissue.",
    ),
    "vessels": (
        "Light-sheet fluorescence microscopy patch of a cleared mouse brain in which the "
        "vasculature is labelled by a lectin. Tubes of many calibres form a connected network: "
        "broad trunks taper and branch into winding capillaries. The space between them is dark "
        "parenchyma.",
        "Blood vessels of a cleared brain, stained through the endothelium and imaged by light- "
        "sheet microscopy. Large vessels cross the field with bright walls, and thin capillaries "
        "connect around them as a loose mesh.",
        "Volumetric light-sheet image of the cerebral vascular network. Continuous, curved "
        "filaments branch and rejoin in three dimensions, and differ greatly in diameter.",
        "Endothelial labelling in optically cleared rodent brain tissue. The fluorescence follows "
        "elongated tubular structures, from arterioles and venules down to capillaries, that wind "
        "through the tissue.",
        "A branching tree of vessels with its capillary bed in a cleared mouse brain, recorded in "
        "the far-red channel of a light-sheet microscope. Lumens of the larger vessels look "
        "hollow.",
    ),
    "neurons": (
        "Light-sheet fluorescence microscopy patch of a cleared mouse brain with sparse genetic "
        "labelling of neurons. A few bright cell bodies send out long, tapering, branched "
        "dendrites, and thin axons pass between them. Most of the volume is dark.",
        "Sparsely labelled projection neurons in cleared brain tissue, imaged by light-sheet "
        "microscopy. Single somata and their processes can be followed in three dimensions "
        "against a nearly empty, noisy background.",
        "Viral tracing of individual neurons in an intact cleared mouse brain. Intense somata "
        "give rise to thick apical and finer basal dendrites that fork repeatedly.",
        "This light-sheet volume shows isolated fluorescent neurons. Round or pyramidal cell "
        "bodies are joined by smooth neurites that get thinner with distance; beaded axon "
        "fragments cross the field.",
        "A small number of neurons expressing a fluorescent protein in a cleared rodent brain. "
        "The branching arbours are filamentous and very bright, and occupy a small share of the "
        "volume.",
    ),
    "glia": (
        "Light-sheet fluorescence microscopy patch of a cleared mouse brain in which microglia "
        "are labelled. Small bright cell bodies carry several short, twisting processes. The "
        "cells tile the tissue at regular distances, with little contact between neighbours.",
        "Microglia in optically cleared brain tissue, made visible by a reporter and imaged with "
        "a light sheet. Compact somata with ramified arms are spread evenly through the "
        "parenchyma.",
        "Three-dimensional light-sheet volume of resting microglia. Each cell is a bright "
        "irregular core surrounded by faint branched extensions, separated from the next by dark "
        "tissue.",
        "Immunolabelling of microglia in an intact cleared mouse brain. The signal consists of "
        "many separate, star-like cells of similar size whose fine processes fade into the "
        "background.",
        "Evenly spaced glial cells in a cleared rodent brain recorded by light-sheet microscopy. "
        "Intense somata are elongated or lobed, and thin arms reach out in all directions.",
    ),
}


def volume_captions(kind: str, params: dict, *, volume: int) -> list[str]:
    """The wordings of a kind, each ending in a sentence that tells this volume from the others."""
    z, y, x = params["voxel_um"]
    voxel = f"voxels of {x:g} by {y:g} by {z:g} micrometres"
    ending = f" Specimen {volume + 1}, acquired in the {params['channel_nm']} nm channel with {voxel}."
    return [text + ending for text in CAPTIONS[kind]]
