"""Breaks each rule of docs/soundness.md in a copy of the code and shows that the test that holds it fails.

.venv/bin/python -m tests.bench.break_rules
"""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("ndc_core", "pipeline", "tests")


@dataclass(frozen=True)
class Breakage:
    rule: str
    how: str
    file: str
    sound: str
    broken: str
    test: str


BREAKAGES = (
    Breakage(
        "S1",
        "every draw of an image replays the same noise",
        "ndc_core/noise/draw_generators.py",
        "json.dumps([seed, image_id, phase, draw])",
        "json.dumps([seed, image_id, phase])",
        "ndc_core/noise/test_streams.py",
    ),
    Breakage(
        "S1",
        "all steps of a draw meet the same noise",
        "ndc_core/noise/step_streams.py",
        "fill_normal(noise.flatten(1), key_words, self.first_stream + step)",
        "fill_normal(noise.flatten(1), key_words, self.first_stream + 0 * step)",
        "ndc_core/classifiers/test_step_noise.py",
    ),
    Breakage(
        "S1",
        "the last pass of a batch has fewer rows",
        "ndc_core/models/forward_passes.py",
        "missing = count - len(rows)",
        "missing = 0",
        "ndc_core/classifiers/test_diffusion.py::test_every_forward_pass_has_the_same_number_of_rows",
    ),
    Breakage(
        "S1",
        "all rows of a pass share one Gram matrix",
        "ndc_core/models/linear_heads.py",
        "c_out**2 * (phi @ phi.mT)",
        "c_out**2 * (phi @ phi.mT).mean(0)",
        "ndc_core/models/test_linear_heads.py::test_a_row_has_the_same_bits_for_any_number_of_targets_and_in_any_company",
    ),
    Breakage(
        "S2",
        "a sift compares with the best class of all draws in the batch",
        "ndc_core/classifiers/sift.py",
        "np.where(alive, accumulated, np.inf).min(axis=1, keepdims=True)",
        "np.where(alive, accumulated, np.inf).min()",
        "ndc_core/classifiers/test_sift.py",
    ),
    Breakage(
        "S2",
        "a race compares with the leader of all draws in the batch",
        "ndc_core/classifiers/racing.py",
        "behind = sums - np.take_along_axis(sums, best[:, None], axis=1)",
        "behind = sums - sums.min()",
        "ndc_core/classifiers/test_racing.py",
    ),
    Breakage(
        "S2",
        "a level on a path uses the levels before it, which are nearer to the clean image",
        "ndc_core/classifiers/diffusion_scores.py",
        "            grid = build_grid(self.grid, tau_model=tau_model)\n",
        "            grid = build_grid(self.grid, tau_model=min(taus_model))\n",
        "ndc_core/classifiers/test_scoring.py",
    ),
    Breakage(
        "S2",
        "a vote ends when its candidate no longer leads, which depends on the selection",
        "ndc_core/classifiers/scoring.py",
        "& ~alive[np.arange(len(voting)), candidate]",
        "& (leaders(losses, alive)[0] != candidate)",
        "ndc_core/classifiers/test_scoring.py",
    ),
    Breakage(
        "S3",
        "the bound counts the selection votes too",
        "ndc_core/certificates/cohen.py",
        "*tally.wins[-1], alpha",
        "tally.wins[-1][0] + int(tally.selection[tally.top]), tally.wins[-1][1] + int(sum(tally.selection)), alpha",
        "ndc_core/certificates/test_certificate.py",
    ),
    Breakage(
        "S3",
        "the library's estimation votes are its selection votes again",
        "ndc_core/certification.py",
        'yield Draws("estimation"',
        'yield Draws("selection"',
        "ndc_core/test_certification.py::test_cohens_certificate_is_that_of_the_votes",
    ),
    Breakage(
        "S3",
        "votes beyond the look that decided are taken",
        "pipeline/certificates/stopping.py",
        "if present > needed:",
        "if False:",
        "pipeline/certificates/test_stopping.py",
    ),
    Breakage(
        "S3",
        "a fixed-sample bound is looked at after every wave",
        "ndc_core/certificates/sequential.py",
        "probability_lower(*reached, alpha=self.terms.alpha)",
        "__import__('ndc_core.certificates.confidence_bounds').certificates.confidence_bounds.clopper_pearson_lower("
        "*reached, alpha=self.terms.alpha)",
        "ndc_core/certificates/test_calibration.py::test_sequential[0.25]",
    ),
    Breakage(
        "S4",
        "an image is certified from the votes that are there",
        "pipeline/certificates/stopping.py",
        "if not present == reached == needed:",
        "if False:",
        "pipeline/certificates/test_reduce.py",
    ),
    Breakage(
        "S3",
        "a run that was looked at takes more votes as it grows",
        "pipeline/declaration/growth.py",
        "if without_what_grows(declared) != without_what_grows(wanted):",
        "if False:",
        "pipeline/declaration/test_growth.py",
    ),
    Breakage(
        "S4",
        "a partial report certifies images that are not decided",
        "pipeline/certificates/reduce.py",
        "        if cell.state().decided:\n",
        "        if True:\n",
        "pipeline/report/test_partial.py",
    ),
    Breakage(
        "S4",
        "counts are scaled by ten",
        "pipeline/certificates/stopping.py",
        "counts[class_id] = votes",
        "counts[class_id] = 10 * votes",
        "pipeline/certificates/test_reduce.py",
    ),
    Breakage(
        "S5",
        "each level of a maximum keeps all of alpha",
        "pipeline/declaration/procedure.py",
        "return total / len(self.sigma_pixel) if self.maximum_over_sigmas else total",
        "return total",
        "pipeline/declaration/test_procedure.py",
    ),
    Breakage(
        "S5",
        "a maximum takes more levels than it shared alpha among",
        "pipeline/declaration/growth.py",
        "    if declared.maximum_over_sigmas:\n",
        "    if False:\n",
        "pipeline/declaration/test_growth.py",
    ),
    Breakage(
        "S6",
        "an abstention counts as right at radius 0",
        "ndc_core/certificates/certificate.py",
        "return self.predicted == label and self.radius >= radius",
        "return self.predicted in (label, None) and self.radius >= radius",
        "ndc_core/certificates/test_certificate.py",
    ),
    Breakage(
        "S7",
        "a radius is rounded to the nearest float of an inexact formula",
        "ndc_core/certificates/radius.py",
        "math.nextafter(sigma_pixel * float(ndtri(p_lower)) * (1 - RELATIVE_MARGIN), 0.0)",
        "sigma_pixel * float(ndtri(p_lower))",
        "ndc_core/certificates/test_certificate.py",
    ),
    Breakage(
        "S7",
        "a radius is rounded to the nearest in the log",
        "pipeline/certificates/files.py",
        "return math.floor(number * 10**digits) / 10**digits",
        "return round(number, min(digits, 3))",
        "pipeline/certificates/test_reduce.py",
    ),
    Breakage(
        "S8",
        "integer noise is a float that was not rounded",
        "ndc_core/noise/smoothing.py",
        "return rounded_gaussian_table(self.sigma_pixel).draw(generator, shape)",
        "return generator.standard_normal(shape) * LEVELS * self.sigma_pixel",
        "ndc_core/noise/test_smoothing.py",
    ),
    Breakage(
        "S8",
        "the noise of a path adds up rounded Gaussians",
        "ndc_core/noise/shared_path.py",
        "discrete_gaussian_table(*ends).draw(generator, shape) for ends in",
        "np.rint(math.sqrt(_variance_in_levels(*ends)) * generator.standard_normal(shape)).astype(int) for ends in",
        "ndc_core/noise/test_shared_path.py",
    ),
    Breakage(
        "S8",
        "the noise of a path is scaled by the lowest level that votes",
        "ndc_core/vote_requests.py",
        "noise = _path_noise(request, draws, path_noise, classifier.image_shape)",
        "noise = _path_noise(request, draws, path_noise, classifier.image_shape)"
        " * (request.sigma_pixel[0] / path_sigmas[0])",
        "pipeline/workers/test_noise_levels.py::"
        "test_a_class_with_less_than_half_of_the_votes_is_not_certified_when_the_other_levels_are_done",
    ),
    Breakage(
        "S8",
        "the steps of a Lipschitz certificate add floats to the image",
        "ndc_core/noise/lattice.py",
        "level.add(image, level.draw(generator, image.shape))",
        "pixels_to_model(image / 255).astype(np.float32)"
        " + np.float32(level.sigma_model) * generator.standard_normal(image.shape, dtype=np.float32)",
        "ndc_core/noise/test_lattice.py::test_a_network_that_reads_low_bits_is_not_certified_beyond_an_image_where_its_class_changes",
    ),
    Breakage(
        "attack",
        "one plurality of an attack's votes is a fall",
        "pipeline/workers/attack_actor.py",
        "confirmed = success and self._confirmed(",
        "confirmed = success or self._confirmed(",
        "pipeline/workers/test_attack_verdicts.py",
    ),
    Breakage(
        "attack",
        "an ascent leaves the ball that the certificate is about",
        "ndc_core/analysis/ascent.py",
        "self.reach / norms(delta)",
        "2 * self.reach / norms(delta)",
        "ndc_core/analysis/test_ascent.py",
    ),
    Breakage(
        "S9",
        "a value that is not finite is taken for a large loss",
        "ndc_core/classifiers/losses.py",
        "    if np.isfinite(answer).all():\n        return\n",
        "    return\n",
        "ndc_core/classifiers/test_diffusion.py",
    ),
    Breakage(
        "S3",
        "a run takes over votes about another class than it selected",
        "pipeline/certificates/reuse.py",
        "cell.candidate is not None and cell.candidate == other.candidate",
        "cell.candidate is not None",
        "pipeline/certificates/test_reuse.py",
    ),
    Breakage(
        "S9",
        "a class whose score is not a number wins at a baseline",
        "ndc_core/classifiers/baselines.py",
        "if not np.isfinite(scores).all():",
        "if np.isinf(scores).any():",
        "ndc_core/classifiers/test_baselines.py::test_a_score_that_is_not_finite_is_an_error_with_image_draw_and_class",
    ),
    Breakage(
        "lipschitz",
        "the constant of a mean is used for a score that is a sum",
        "ndc_core/certificates/lipschitz.py",
        "return float((weight * dimension * (through_noise + through_target)).sum())",
        "return float((weight * (through_noise + through_target)).sum())",
        "ndc_core/certificates/test_lipschitz.py",
    ),
    Breakage(
        "lipschitz",
        "a point estimate of the margin is certified",
        "ndc_core/certificates/lipschitz.py",
        "lower = smallest_mean_lower(margins, lowest=self.lowest_margin, alpha=self.terms.alpha)",
        "lower = float(margins.mean(axis=0).min())",
        "ndc_core/certificates/test_lipschitz.py",
    ),
    Breakage(
        "lipschitz",
        "outputs that are not clipped are certified",
        "pipeline/workers/models.py",
        "and not denoiser.bounded",
        "and denoiser is None",
        "pipeline/workers/test_models.py",
    ),
)


def passes(tests: list[str], breakage: Breakage | None) -> bool:
    """Runs tests on a copy of the code, broken or not."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in FOLDERS:
            shutil.copytree(ROOT / name, Path(scratch) / name)
        shutil.copy(ROOT / "pyproject.toml", scratch)
        if breakage:
            path = Path(scratch) / breakage.file
            source = path.read_text()
            if source.count(breakage.sound) != 1:
                raise click.ClickException(f"{breakage.file} has changed: {breakage.sound!r} is not there once")
            path.write_text(source.replace(breakage.sound, breakage.broken))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "slow or not slow", *tests]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return done.returncode == 0


@click.command()
def main() -> None:
    tests = sorted({f"tests/{breakage.test}" for breakage in BREAKAGES})
    if not passes(tests, None):
        raise click.ClickException("the tests fail on the code as it is; mend it first")
    click.echo(f"{len(tests)} tests and files of tests pass on the code as it is")
    held = 0
    for breakage in BREAKAGES:
        noticed = not passes([f"tests/{breakage.test}"], breakage)
        held += noticed
        click.echo(f"{breakage.rule:9}  {'noticed' if noticed else 'NOT NOTICED'} by {breakage.test}: {breakage.how}")
    click.echo(f"{held} of {len(BREAKAGES)} noticed")
    sys.exit(0 if held == len(BREAKAGES) else 1)


if __name__ == "__main__":
    main()
