"""Ways back through the flow: how good is the student, which way of training it is best, what does each solver cost?

    python benchmarks/inversion.py students          embedded students: error to the exact inverse, Frechet distance, class accuracy
    python benchmarks/inversion.py attempts          ways of training a student of the embedded glyphs, equal steps
    python benchmarks/inversion.py jacobi            rounds and times of every block, for trained flows and a large random one
    python benchmarks/inversion.py time              the student's pass over the exact inverse, 28 blocks, one image
    python benchmarks/inversion.py time --device cuda      FARMER-1.1B's flow in bfloat16, over batch sizes

`students`: 1,000 samples for each of three sampling seeds, judged by a small convolutional network trained on the
training images; Frechet distances of its 64 features to the held-out images and to the training images. The distance
from the model is the Kullback-Leibler divergence of the student's samples, which have an exact density under both.

`attempts`: 800 steps of 64 images, two seeds; root mean square error to the exact inverse on 500 held-out images and on
500 samples of the prior, in the scale of pixels. Each mode also writes its numbers to a JSON file beside this script.
"""
import argparse
import contextlib
import copy
import json
import math
import statistics
import time
from pathlib import Path

import torch
from guidance import frechet_distance, train_judge  # the script beside this one
from torch import Tensor, nn
from torch.nn import functional as F

from farmer.data import load_dataset
from farmer.flow import AutoregressiveFlow, InverseAutoregressiveFlow, jacobi_inverse, own_order
from farmer.inversion import DISTILLATION, tokens_of
from farmer.model import Farmer
from farmer.patches import dequantize
from farmer.transformer import TransformerLayer

NAMES = ("digits", "glyphs")


def rms(difference: Tensor) -> float:
    return difference.square().mean().sqrt().item()


def held_out_pairs(model: Farmer, name: str, count: int) -> tuple[Tensor, Tensor]:  # z and x, (count, N, d)
    dataset = load_dataset(name, "test")
    images, _ = dataset.batch(range(min(count, len(dataset))))
    x = tokens_of(model, dequantize(images, model.config.levels, torch.Generator().manual_seed(5)))
    return model.flow(x)[0], x


def prior_pairs(model: Farmer, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    latents = model.sample_latents(labels, torch.Generator().manual_seed(seed))
    z = model.partition.join(latents.informative, latents.redundant)
    return z, model.flow.inverse(z)


# --- The embedded students


def students(count: int = 1000, seeds: int = 3) -> dict:
    results = {}
    for name in NAMES:
        model, train, test = Farmer.from_pretrained(name), load_dataset(name, "train"), load_dataset(name, "test")
        z, x = held_out_pairs(model, name, 1000)
        row = {"rmse, held out": [rms(model.student(z)[0] - x)], "rmse, start of distillation": [rms(InverseAutoregressiveFlow(model.flow)(z)[0] - x)]}
        (images, labels), (held_out, held_out_labels) = train.batch(range(min(len(train), 20_000))), test.batch(range(len(test)))
        with torch.enable_grad():
            torch.manual_seed(0)
            judge = train_judge(images, labels, train.num_classes).eval()
        references = {"held-out images": judge.features(held_out), "training images": judge.features(images)}
        print(f"\n{name}: held-out images, root mean square error {row['rmse, held out'][0]:.4f}; before distillation"
              f" {row['rmse, start of distillation'][0]:.4f}; the judge reads held-out images with accuracy"
              f" {(judge(held_out).argmax(1) == held_out_labels).float().mean():.3f}")  # fmt: skip
        wanted = torch.arange(train.num_classes).repeat(count // train.num_classes)
        for seed in range(seeds):
            latents = model.sample_latents(wanted, torch.Generator().manual_seed(seed))
            z = model.partition.join(latents.informative, latents.redundant)
            exact, exact_report = model.decode(latents, labels=wanted, return_report=True)
            made, report = model.decode(latents, "student", labels=wanted, return_report=True)
            drawn_log_prob = sum(model.prior(model.reading_order(z), wanted)) - model.student(z)[1]
            values = {"rmse, prior samples": rms(exact - made), "residual, root mean square": report.rms_residual.square().mean().sqrt().item()}
            values["residual, largest"] = report.residual.max().item()
            values["divergence from the model, nats/image"] = (drawn_log_prob - report.log_prob).mean().item()
            for solver, samples in (("exact", exact), ("student", made)):
                samples = samples.clamp(-1, 1)
                values[f"class accuracy, {solver}"] = (judge(samples).argmax(1) == wanted).float().mean().item()
                for reference, features in references.items():
                    values[f"Frechet to {reference}, {solver}"] = frechet_distance(judge.features(samples), features)
            for reference in references:
                distances = [values[f"Frechet to {reference}, {solver}"] for solver in ("student", "exact")]
                values[f"Frechet to {reference}, student over exact"] = distances[0] / distances[1]
            for key, value in values.items():
                row.setdefault(key, []).append(value)
        for key, figures in row.items():
            spread = f" ± {statistics.stdev(figures):.4f}" if len(figures) > 1 else ""
            print(f"  {key:52}{statistics.mean(figures):10.4f}{spread}", flush=True)
        results[name] = row
    return results


# --- Ways of training a student


def see_all_tokens(layer: TransformerLayer, x: Tensor) -> Tensor:  # (B, N, W) -> (B, N, W)
    "The layer without its causal mask."
    projected = layer.query_key_value(layer.attention_norm(x)).unflatten(-1, (3, layer.heads, -1)).permute(2, 0, 3, 1, 4)
    x = x + layer.attention_output(F.scaled_dot_product_attention(*projected).transpose(1, 2).flatten(2))
    return x + layer.network_output(F.gelu(layer.network_input(layer.network_norm(x))))


class BothWays(nn.Module):
    "The paper's student: blocks of the flow's sizes whose attention sees all tokens, and a token's own z."

    def __init__(self, flow: AutoregressiveFlow, copied: bool):
        super().__init__()
        if copied:
            self.blocks = copy.deepcopy(flow.blocks).requires_grad_(True)
        else:
            first = flow.blocks[0]
            tokens, width, channels = *first.position.shape, first.input.in_features
            layers = first.transformer.layers
            self.blocks = AutoregressiveFlow(tokens, channels, width, len(flow.blocks), len(layers), layers[0].heads).blocks
        width, channels = self.blocks[0].input.weight.shape
        self.own = nn.ModuleList(nn.Linear(channels, width, bias=False) for _ in self.blocks)
        for own in self.own:
            nn.init.zeros_(own.weight)

    def forward(self, z: Tensor) -> list[Tensor]:  # the outputs of the blocks, last block of the flow first
        states = []
        for index, block in reversed(list(enumerate(self.blocks))):
            z = own_order(z, index)
            x = torch.cat([block.start.expand(len(z), 1, -1), block.input(z[:, :-1])], dim=1) + block.position + self.own[index](z)
            for layer in block.transformer.layers:
                x = see_all_tokens(layer, x)
            shift, log_scale = block.shift_and_log_scale(block.transformer.norm(x))
            z = z * torch.exp(-log_scale) + shift
            z = own_order(z, index)
            states.append(z)
        return states


class HiddenAlignment(nn.Module):
    "One transformer without blocks, as in follow-up work: hidden states are read out linearly at the places of the flow's states."

    def __init__(self, flow: AutoregressiveFlow):
        super().__init__()
        self.body = BothWays(flow, copied=False)
        width, channels = self.body.blocks[0].input.weight.shape
        self.skip = nn.ModuleList(nn.Linear(channels, channels) for _ in flow.blocks)
        self.read = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels)) for _ in flow.blocks)
        for skip, read in zip(self.skip, self.read):
            nn.init.eye_(skip.weight)
            nn.init.zeros_(skip.bias)
            nn.init.zeros_(read[1].weight)
            nn.init.zeros_(read[1].bias)

    def forward(self, z: Tensor) -> list[Tensor]:
        first, states = self.body.blocks[-1], []
        x = first.input(z) + first.position
        for block, skip, read in zip(reversed(self.body.blocks), self.skip, self.read):
            for layer in block.transformer.layers:
                x = see_all_tokens(layer, x)
            states.append(read(x) + skip(z))
        return states


class Causal(nn.Module):
    "Ours, with the outputs of all blocks."

    def __init__(self, flow: AutoregressiveFlow):
        super().__init__()
        self.student = InverseAutoregressiveFlow(flow)

    def forward(self, z: Tensor) -> list[Tensor]:
        states = []
        for index, block in reversed(list(enumerate(self.student.blocks))):
            z = own_order(z, index)
            shift, log_scale = block.predict(z)
            z = torch.addcmul(shift, z, torch.exp(-log_scale))
            z = own_order(z, index)
            states.append(z)
        return states


ATTEMPTS = {  # student, loss, noise on latents (largest deviation), noise on images (deviation at the start, falls to 0)
    "attends to all, new weights; block outputs; latent noise .3 (paper)": (lambda flow: BothWays(flow, False), "blocks", 0.3, 0),
    "attends to all, new weights; block outputs": (lambda flow: BothWays(flow, False), "blocks", 0, 0),
    "attends to all, new weights; image": (lambda flow: BothWays(flow, False), "image", 0, 0),
    "no blocks, new weights; aligned hidden states (BiFlow)": (HiddenAlignment, "blocks", 0, 0),
    "no blocks, new weights; image": (HiddenAlignment, "image", 0, 0),
    "attends to all, flow's weights; block outputs; latent noise .3": (lambda flow: BothWays(flow, True), "blocks", 0.3, 0),
    "attends to all, flow's weights; block outputs": (lambda flow: BothWays(flow, True), "blocks", 0, 0),
    "attends to all, flow's weights; image": (lambda flow: BothWays(flow, True), "image", 0, 0),
    "causal, flow's weights; block outputs; latent noise .3": (Causal, "blocks", 0.3, 0),
    "causal, flow's weights; block outputs": (Causal, "blocks", 0, 0),
    "causal, flow's weights; image": (Causal, "image", 0, 0),
    "causal, flow's weights; image; latent noise .05": (Causal, "image", 0.05, 0),
    "causal, flow's weights; image; image noise .1 (the library's)": (Causal, "image", 0, 0.1),
    "causal, flow's weights; image and latent residual; image noise .1": (Causal, "residual", 0, 0.1),
}


def attempt(model: Farmer, make_student, loss_name: str, latent_noise: float, image_noise: float, steps: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    generator, train, flow = torch.Generator().manual_seed(seed), load_dataset("glyphs", "train"), model.flow
    student = make_student(flow)
    optimizer = torch.optim.AdamW(student.parameters(), lr=DISTILLATION.learning_rate, betas=DISTILLATION.betas, weight_decay=0.0)
    order = torch.cat([torch.randperm(len(train), generator=generator) for _ in range(math.ceil(64 * steps / len(train)))])
    for step in range(steps):
        images, _ = train.batch(order[64 * step : 64 * step + 64])
        with torch.no_grad():
            images = dequantize(images, model.config.levels, generator)
            fade = 0.5 + 0.5 * math.cos(math.pi * step / steps)
            images = images + image_noise * fade * torch.randn(images.shape, generator=generator)
            targets, _ = flow.states(tokens_of(model, images))
            z = targets[-1]
            spread = latent_noise * torch.rand(64, 1, 1, generator=generator)
            noisy = z + spread * torch.randn(z.shape, generator=generator)
        outputs, targets = student(noisy), targets[-2::-1]
        loss = F.mse_loss(outputs[-1], targets[-1])
        if loss_name == "blocks":
            loss = sum(F.mse_loss(*pair) for pair in zip(outputs, targets)) / len(targets)
        elif loss_name == "residual":
            loss = loss + 0.05 * F.mse_loss(flow(outputs[-1])[0], noisy)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = DISTILLATION.learning_rate * min(1, (step + 1) / 50) * fade
        optimizer.step()
    return student


def attempts(steps: int = 800, seeds: int = 2) -> dict:
    model, results = Farmer.from_pretrained("glyphs"), {}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    pairs = {"held out": held_out_pairs(model, "glyphs", 500), "prior": prior_pairs(model, torch.arange(10).repeat(50), seed=7)}
    print(f"{'root mean square error':68}{'held out':>18}{'prior samples':>18}{'residual':>10}{'seconds':>9}")
    for name, (make_student, loss, latent_noise, image_noise) in ATTEMPTS.items():
        row = {"held out": [], "prior": [], "residual": [], "seconds": []}
        for seed in range(seeds):
            started = time.perf_counter()
            student = attempt(model, make_student, loss, latent_noise, image_noise, steps, seed)
            row["seconds"].append(time.perf_counter() - started)
            with torch.no_grad():
                for kind, (z, x) in pairs.items():
                    made = student(z)[-1]
                    row[kind].append(rms(made - x))
                row["residual"].append(rms(model.flow(made)[0] - z))
        cells = [f"{statistics.mean(row[kind]):.4f} ± {statistics.stdev(row[kind]):.4f}" for kind in pairs]
        print(f"{name:68}{cells[0]:>18}{cells[1]:>18}{statistics.mean(row['residual']):10.3f}{statistics.mean(row['seconds']):9.0f}", flush=True)
        results[name] = row
    return {"steps": steps, "rows": results}


# --- Time


def large_flow(width: int, layers: int, device: str = "cpu") -> AutoregressiveFlow:
    "28 blocks on 256 tokens of 768 channels, as FARMER-1.1B's; random weights."
    torch.manual_seed(0)
    flow = AutoregressiveFlow(256, 768, width, 28, layers, width // 64).to(device).eval()
    for block in flow.blocks:
        nn.init.normal_(block.output.weight, std=0.1 * width**-0.5)
    return flow


def seconds(call, repeats: int, device: str = "cpu") -> float:
    "The best of several runs: other work can only add to a time."
    times = []
    for _ in range(repeats):
        if device != "cpu":
            torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def timings(device: str) -> dict:
    if device == "cpu":
        return timings_cpu()
    flow, results = large_flow(768, 4, device), {}
    student = InverseAutoregressiveFlow(flow)
    weights = sum(parameter.numel() for parameter in flow.blocks[0].transformer.parameters())
    print(f"{torch.cuda.get_device_name()}, bfloat16; weights of a block's transformer {weights:,}; paper: exact 0.1689, student 0.0076 s/image")
    print(f"{'images':>8}{'exact s/image':>15}{'student s/image':>17}{'ratio':>8}{'weights read, GB/s':>20}")
    for batch in (1, 8, 32, 128, 512):
        z = torch.randn(batch, 256, 768, device=device)
        with torch.autocast("cuda", torch.bfloat16):
            times = [seconds(lambda: inverse(z), 3, device) for inverse in (flow.inverse, student)]
        read = 28 * 256 * weights * 2 / times[0] / 1e9
        print(f"{batch:8}{times[0] / batch:15.4f}{times[1] / batch:17.5f}{times[0] / times[1]:7.1f}x{read:20.0f}", flush=True)
        results[batch] = times
    return results


def timings_cpu() -> dict:
    flow = large_flow(256, 1)
    student, z, results = InverseAutoregressiveFlow(flow), torch.randn(1, 256, 768), {"threads": torch.get_num_threads()}
    found, exact = jacobi_inverse(flow, z, 1e-5), flow.inverse(z)
    print(f"28 blocks of width 256 x 1 layer, 256 tokens of 768 channels, one image, float32, {torch.get_num_threads()} threads; random weights")
    print(f"jacobi: {found.rounds.double().mean():.1f} rounds a block, largest difference from exact {(found.x - exact).abs().max():.1e}")
    calls = {"exact": lambda: flow.inverse(z), "jacobi 1e-5": lambda: jacobi_inverse(flow, z, 1e-5), "student": lambda: student(z)}
    for name, call in calls.items():
        results[name] = seconds(call, 3)
    for threads in (1, 2):  # a single image is short work: more threads may cost more than they help
        torch.set_num_threads(threads)
        results[f"exact, {threads} threads"] = seconds(calls["exact"], 3)
    torch.set_num_threads(results["threads"])
    best = min(time for name, time in results.items() if name.startswith(("exact", "jacobi")))
    for name, time_taken in results.items():
        if name != "threads":
            print(f"{name:20}{time_taken:8.3f} s   {time_taken / results['student']:6.1f}x the student")
    print(f"student over the fastest exact way: {best / results['student']:.1f}x")
    return results


def jacobi(batch: int = 64, tolerance: float = 1e-5) -> dict:
    results, cases = {}, {}
    for name in NAMES:
        model = Farmer.from_pretrained(name)
        z, _ = prior_pairs(model, torch.arange(10).repeat(math.ceil(batch / 10))[:batch], seed=0)
        cases[f"{name}, trained, {batch} images"], cases[f"{name}, trained, 1 image"] = (model.flow, z), (model.flow, z[:1])
    cases["28 blocks, N = 256, width 256, random weights, 1 image"] = (large_flow(256, 1), torch.randn(1, 256, 768))
    for name, (flow, z) in cases.items():
        print(f"\n{name}: tolerance {tolerance:g}")
        print(f"{'block':>6}{'rounds':>16}{'jacobi ms':>12}{'exact ms':>12}{'exact / jacobi':>16}{'difference':>13}")
        rows = []
        for index, block in reversed(list(enumerate(flow.blocks))):
            single = AutoregressiveFlow.__new__(AutoregressiveFlow)
            nn.Module.__init__(single)
            single.blocks = nn.ModuleList([block])
            turned = own_order(z, index)
            exact, found = single.inverse(turned), jacobi_inverse(single, turned, tolerance)
            times = [seconds(lambda: jacobi_inverse(single, turned, tolerance), 3), seconds(lambda: single.inverse(turned), 3)]
            difference = (found.x - exact).abs().max().item()
            rounds = found.rounds.double()
            rows.append({"block": index + 1, "rounds": rounds.mean().item(), "jacobi": times[0], "exact": times[1], "difference": difference})
            if index < 4 or index > 24:
                span = f"{rounds.mean():.1f} ({found.rounds.min()}-{found.rounds.max()})"
                print(f"{index + 1:6}{span:>16}{times[0] * 1e3:12.1f}{times[1] * 1e3:12.1f}{times[1] / times[0]:15.2f}x{difference:13.1e}", flush=True)
            z = own_order(exact, index)
        total = [sum(row[way] for row in rows) for way in ("jacobi", "exact")]
        print(f"all blocks: jacobi {total[0] * 1e3:.0f} ms, exact {total[1] * 1e3:.0f} ms: jacobi is {total[1] / total[0]:.2f}x as fast")
        results[name] = rows
    return results


def main():
    parser = argparse.ArgumentParser(description="Solvers of the flow's inverse: quality and time.")
    parser.add_argument("mode", choices=("students", "attempts", "jacobi", "time"))
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for time")
    options = parser.parse_args()
    calls = {"students": students, "attempts": attempts, "jacobi": jacobi, "time": lambda: timings(options.device)}
    with contextlib.nullcontext() if options.mode == "attempts" else torch.no_grad():
        result = calls[options.mode]()
    suffix = f"time_{options.device}" if options.mode == "time" else options.mode
    Path(__file__).with_name(f"inversion_{suffix}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
