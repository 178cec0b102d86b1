"""Plans: what cells they have, how large these are, and what wrong plans are told."""

from pathlib import Path

import pytest

from jobs.recipes import load_recipe, recipes
from jobs.sweeping.cell import Budget, Cell
from jobs.sweeping.family import rate, shape
from jobs.sweeping.file import read_plan
from jobs.sweeping.plan import Plan, load_maker, makers
from jobs.sweeping.plans.genealogy import GenealogyOptions, genealogy, on_common
from jobs.sweeping.plans.ladder import LadderOptions, ladder
from jobs.sweeping.settings import changed
from jobs.sweeping.sizes import sized, sizes_of
from models.vit import VitConfig
from pipeline.archive import create_archive, open_archive
from pipeline.errors import InputError
from pipeline.sensors import load_sensor
from tests.pipeline.test_archive import GRID, make_tiles


def test_dial_2_is_the_tiny_shape_and_parameters_grow_with_its_cube() -> None:
    tiny = load_recipe("pretrain", "mae_tiny")
    assert changed(tiny, shape("mae_tiny", 2)) == tiny
    recipe = changed(tiny, shape("mae_tiny", 5))
    assert recipe.backbone == VitConfig(embed_dim=120, depth=5, num_heads=5)
    assert (recipe.decoder_width, recipe.decoder_heads) == (80, 2)
    assert [rate(0.003, dial, 1.0) for dial in (1, 2, 4)] == [0.006, 0.003, 0.0015]
    with pytest.raises(InputError, match="recipe 'simmim_tiny' has a swin for a backbone; a family of sizes needs a vit"):
        shape("simmim_tiny", 2)
    with pytest.raises(InputError, match="size 0 is no size"):
        shape("mae_tiny", 0)


def test_lanes_of_a_cell_need_not_suit_the_recipes_workers() -> None:
    cell = Cell("a", "mae_tiny", (("train.lanes", 1),), 0, Budget(samples=64))
    assert (cell.recipe_of().train.lanes, cell.recipe_of().train.workers) == (1, "0")


def test_a_cell_is_known_by_what_its_numbers_depend_on() -> None:
    cell = Cell("a", "mae_tiny", (("mask_ratio", 0.5),), 0, Budget(samples=64))
    assert cell.key == Cell("another name", "mae_tiny", (("mask_ratio", 0.5),), 0, Budget(samples=64)).key
    others = [
        Cell("a", "mae_tiny", (("mask_ratio", 0.6),), 0, Budget(samples=64)),
        Cell("a", "mae_tiny", (("mask_ratio", 0.5),), 1, Budget(samples=64)),
        Cell("a", "mae_tiny", (("mask_ratio", 0.5),), 0, Budget(flops=64)),
        Cell("a", "dofa_tiny", (("mask_ratio", 0.5),), 0, Budget(samples=64)),
    ]
    assert len({cell.key, *(other.key for other in others)}) == 5
    with pytest.raises(InputError, match="a budget has flops, samples, expected one of flops, samples, hours above 0"):
        Budget(flops=1.0, samples=3)
    with pytest.raises(InputError, match="a budget has nothing"):
        Budget()


def test_sizes_are_counted_from_the_configuration(archive: str) -> None:
    """Steps spend the budget to half a step; hours are spent at the speed that was measured; warm-up is a tenth at most."""
    cells = {name: Cell(name, name, (), 0, Budget(flops=2e10)) for name in ("mae_tiny", "simclr_tiny")}
    for name, cell in cells.items():
        of = sizes_of(cell, archive)
        assert abs(of.flops - 2e10) <= 0.5001 * of.batch * of.flops_per_sample, name
        assert of.warmup_steps == max(1, round(of.steps / 10))
        assert (of.width, of.depth, of.backbone) == (48, 2, "vit")
        assert of.parameters > of.backbone_parameters == of.active_parameters
        run = sized(cell.recipe_of(), of, "0").train
        assert (run.num_steps, run.optimiser.warmup_steps, run.most) == (of.steps, of.warmup_steps, 0)
        assert run.health_every > of.steps  # a few steps looked at one by one are taken for collapsed
    hours = sizes_of(Cell("a", "mae_tiny", (), 0, Budget(hours=0.5)), archive, seconds_per_step=2.0)
    assert hours.steps == 900
    experts = sizes_of(Cell("a", "loom_tiny", (), 0, Budget(samples=320)), archive)
    assert experts.active_parameters < experts.backbone_parameters
    assert (experts.steps, experts.samples) == (10, 320)
    with pytest.raises(InputError, match=r"simclr_tiny, 1e-05 TFLOP, seed 0: the budget is .* a step takes 32; give it more"):
        sizes_of(Cell("simclr_tiny", "simclr_tiny", (), 0, Budget(flops=1e7)), archive)


def test_a_taught_recipe_is_sized_before_its_teacher_is_trained(archive: str) -> None:
    teacher = Cell("simmim_tiny", "simmim_tiny", (), 0, Budget(samples=64))
    of = sizes_of(Cell("gfm_tiny", "gfm_tiny", (), 0, Budget(samples=64), "simmim_tiny"), archive, teacher)
    alone = sizes_of(teacher, archive)
    assert of.flops_per_sample > alone.flops_per_sample
    assert of.backbone_parameters == alone.backbone_parameters


def test_the_genealogy_is_what_recipes_there_are(archive: str) -> None:
    plan = genealogy(GenealogyOptions(seeds=3), open_archive(archive))
    tiny = {name for name in recipes("pretrain") if name.endswith("_tiny")}
    assert len(tiny) >= 28
    alone = {arm for arm in plan.arms if not arm.endswith(" on vit")}
    assert alone == tiny
    assert len(plan.cells) == 3 * len(plan.arms)
    assert {cell.budget for cell in plan.cells} == {Budget(flops=1e11)}
    taught = [cell for cell in plan.cells if cell.teacher]
    assert {cell.arm for cell in taught} == {"gfm_tiny"}
    assert [plan.teacher_of(cell).seed for cell in taught] == [0, 1, 2]
    assert "simmim_tiny on vit" in plan.arms
    for cell in plan.cells:
        if cell.arm.endswith(" on vit"):
            assert isinstance(cell.recipe_of().backbone, VitConfig)
    assert on_common(load_recipe("pretrain", "mae_tiny")) is None
    with pytest.raises(InputError, match="a recipe needs a teacher, which simmim_tiny is to be"):
        genealogy(GenealogyOptions(recipes=("gfm_tiny",)), open_archive(archive))


def test_every_named_plan_makes_recipes_that_can_be_built(archive: str) -> None:
    """Every setting of every arm, exams among them, is one that its recipe has."""
    found = makers()
    names = {"ladder", "isoflop", "rate_transfer", "genealogy", "temporal", "masking", "cross_sensor", "moe", "hypernetwork"}
    assert set(found) == names | {"composition", "removal"}
    for name, maker in found.items():
        plan = maker.make(maker.options(), open_archive(archive))
        assert plan.name == name
        assert not plan.reference or plan.reference in plan.arms
        for cell in plan.cells:
            if not cell.seed:
                cell.recipe_of()
                for _, settings in cell.exams:
                    cell.recipe_of(settings)
                if name == "hypernetwork":  # whose arms are other models
                    assert sizes_of(cell, archive).flops > 0
    with pytest.raises(InputError, match=r"plan 'lader' is unknown and no .yaml file .*did you mean 'ladder'"):
        load_maker("lader")


def test_of_several_data_sets_the_sensors_that_meet_are_compared(tmp_path: Path) -> None:
    """Most tiles, and the first name, are of a sensor that meets no radar."""
    names = ("sentinel1_grd", "sentinel2_l1c", "sentinel2_l2a")
    archive = create_archive(str(tmp_path / "several"), GRID, {name: load_sensor(name) for name in names}, {})
    archive.publish("one", "train", make_tiles(9, sensor="sentinel2_l1c"), "inputs")
    archive.publish("two", "train", [t for name in names[::2] for t in make_tiles(4, sensor=name)], "inputs")
    made = makers()
    for name in ("cross_sensor", "composition"):
        plan = made[name].make(made[name].options(), archive)
        assert dict(plan.cells[0].settings)["train.sensor_sets"] == [["sentinel1_grd", "sentinel2_l2a"]]
    masking = made["masking"].make(made["masking"].options(), archive)
    assert dict(masking.cells[0].settings)["train.sensor_sets"] == [["sentinel2_l1c"]], "alone, the one with most tiles"
    archive.withdraw("two")
    with pytest.raises(
        InputError, match="has one of sentinel2_l1c, sentinel2_l2a and one of sentinel1_grd; use an archive of pairs"
    ):
        made["cross_sensor"].make(made["cross_sensor"].options(), archive)


def test_experts_and_the_dense_model_of_equal_parameters_are_equal(archive: str) -> None:
    maker = makers()["moe"]
    of = {cell.arm: sizes_of(cell, archive) for cell in maker.make(maker.options(seeds=1), open_archive(archive)).cells}
    dense, same, experts = (of[arm] for arm in ("dense, equal operations", "dense, equal parameters", "4 experts"))
    assert same.backbone_parameters == pytest.approx(experts.backbone_parameters, rel=0.02)
    assert dense.backbone_parameters == pytest.approx(experts.active_parameters, rel=0.02)
    assert dense.flops_per_sample < same.flops_per_sample


def test_plans_that_contradict_themselves_are_refused() -> None:
    cell = Cell("a", "mae_tiny", (), 0, Budget(samples=64))
    with pytest.raises(InputError, match="has the same run twice: a, 64 samples, seed 0 and b, 64 samples, seed 0"):
        Plan("p", "", (cell, Cell("b", "mae_tiny", (), 0, Budget(samples=64))))
    with pytest.raises(InputError, match="plan 'p' has no arm 'c' to compare with"):
        Plan("p", "", (cell,), reference="c")
    with pytest.raises(InputError, match="plan 'p' has no arm 'd' to compare with"):
        Plan("p", "", (cell,), versus=(("a", "d"),))
    with pytest.raises(InputError, match="plan 'p' has no arm 'teacher' to teach another"):
        Plan("p", "", (Cell("a", "gfm_tiny", (), 0, Budget(samples=64), "teacher"),))
    with pytest.raises(InputError, match="plan 'p' has no cells"):
        Plan("p", "", ())
    assert len(ladder(LadderOptions(), None).cells) == 4 * 4 * 2  # type: ignore[arg-type]


PLAN = """
question: which ratio?
arms:
  mae: {recipe: mae_tiny, settings: {normalise_patches: false}}
  dofa: {recipe: dofa_tiny}
seeds: 2
samples: [64, 128]
sizes: [1, 2]
base_rate: 0.004
grid: {mask_ratio: [0.5, 0.75]}
reference: "mae, size 1, mask_ratio 0.5"
"""


def test_a_plan_file_is_a_grid(tmp_path: Path) -> None:
    path = tmp_path / "ratios.yaml"
    path.write_text(PLAN)
    plan = read_plan(str(path)).plan()
    assert plan.name == "ratios"
    assert len(plan.cells) == 2 * 2 * 2 * 2 * 2
    recipe = next(cell for cell in plan.cells if cell.arm == "mae, size 1, mask_ratio 0.75").recipe_of()
    assert (recipe.mask_ratio, recipe.normalise_patches, recipe.backbone.embed_dim) == (0.75, False, 24)
    assert recipe.train.optimiser.learning_rate == 0.008


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("arms:", "arm:"), "plan file '.*ratios.yaml': arms: Field required"),
        (("seeds: 2", "seeds: 0"), "seeds: Input should be greater than or equal to 1"),
        (("samples: [64, 128]", ""), "plan 'ratios' says not what runs may spend; give it teraflops, samples or hours"),
        (("seeds: 2", "seeds: 2\nsede: 3"), "sede: Extra inputs are not permitted"),
        (("[0.5, 0.75]}", "[0.5"), "plan file '.*ratios.yaml' is no YAML"),
    ],
)
def test_a_wrong_plan_file_is_told_where(changes: tuple[str, str], said: str, tmp_path: Path) -> None:
    path = tmp_path / "ratios.yaml"
    path.write_text(PLAN.replace(*changes))
    with pytest.raises(InputError, match=said):
        read_plan(str(path)).plan()
    with pytest.raises(InputError, match=r"plan file 'nowhere.yaml' is missing"):
        read_plan("nowhere.yaml")
