"Ways back through the flow: Jacobi iterations, the one-pass student and its loss, and the certificate that checks them."
import math
import weakref
from unittest import mock

import pytest
import torch
from helpers import LABELS, clean_images, complaint, make_flow, normal, seeded, small
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from farmer.inversion import Jacobi, Student, certify, guessed_inverse, invert_block, jacobi_inverse, paper_student_loss, student_loss
from farmer.model import Farmer

# --- Jacobi


@pytest.mark.parametrize("scale_first", [True, False])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_jacobi_is_exact_to_its_tolerance(blocks, scale_first):
    flow, x = make_flow(blocks, tokens=12, scale_first=scale_first).double(), normal(7, 12, 4, dtype=torch.float64)
    z = flow(x)[0].detach()
    for tolerance in (1e-3, 1e-6, 1e-9):
        found = jacobi_inverse(flow, z, tolerance)
        assert_close(found.x, x, rtol=0, atol=30 * tolerance)
        assert found.rounds.shape == found.change.shape == (7, blocks)
        assert (found.change <= tolerance).all()
    assert (jacobi_inverse(flow, z, 1e-9).rounds >= jacobi_inverse(flow, z, 1e-3).rounds).all()


def test_as_many_rounds_as_tokens_are_exact_whatever_the_guess():
    block, x = make_flow(1, tokens=6, spread=1.0).double().blocks[0], normal(3, 6, 4, dtype=torch.float64)
    with torch.no_grad():
        z, guess = block(x)[0], 5 * normal(3, 6, 4, seed=1, dtype=torch.float64)
        for count in range(1, 7):
            guess = guessed_inverse(block, z, guess)[0]
            assert_close(guess[:, :count], x[:, :count], rtol=0, atol=1e-9)  # token after token gets right
    assert_close(guess, block.inverse(z), rtol=0, atol=1e-9)


def test_jacobi_gives_each_image_what_it_gets_alone():
    flow = make_flow(2, tokens=10)
    z = normal(5, 10, 4) * torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0]).view(5, 1, 1)
    together = jacobi_inverse(flow, z, 1e-4)
    for index in range(5):
        alone = jacobi_inverse(flow, z[index : index + 1], 1e-4)
        assert_close(alone.x[0], together.x[index], rtol=0, atol=1e-5)
        assert torch.equal(alone.rounds[0], together.rounds[index])
    assert len(together.rounds.sum(1).unique()) > 1  # and they do not all stop at once


def test_jacobi_survives_guesses_that_overflow():
    "A token whose latent is huge makes the first guesses of all later ones wild; they must not spoil what is right already."
    block, z = make_flow(1, tokens=8).blocks[0], normal(4, 8, 4)
    z[0, 5] = 1e25
    with torch.no_grad():
        assert guessed_inverse(block, z, z)[0][0, :5].isnan().any()  # without care, that is what happens
    found = invert_block(block, z, 1e-5)
    assert_close(found.x[:, :5], block.inverse(z)[:, :5], rtol=0, atol=1e-4)
    assert_close(found.x[1:], block.inverse(z)[1:], rtol=0, atol=1e-4)


def test_jacobi_refuses_half_precision():
    complaint(ValueError, lambda: jacobi_inverse(make_flow(), normal(2, 6, 4).bfloat16()), "torch.bfloat16", "float32 or float64")


@pytest.mark.parametrize("tolerance", [0.0, -1.0, 1e-8, math.nan])
def test_a_tolerance_below_the_resolution_is_refused(tolerance):
    complaint(ValueError, lambda: jacobi_inverse(make_flow(), normal(2, 6, 4), tolerance), "resolution of torch.float32", "float64")
    if tolerance == 1e-8:
        jacobi_inverse(make_flow().double(), normal(2, 6, 4, dtype=torch.float64), tolerance)


def test_values_that_never_stand_still_are_reported():
    model, jacobi = small(), Jacobi()
    latents = model.encode(clean_images())
    latents.redundant = torch.full_like(latents.redundant, 3e38)  # beyond what float32 can undo
    latents.redundant[2:] = 0
    with pytest.warns(UserWarning, match="did not reach tolerance 1e-05 for 2 of 6 images: values still move by") as caught:
        images = model.decode(latents, inverse=jacobi)
    assert {warning.filename for warning in caught} == {__file__}
    residual = certify(model, images, latents).residual
    assert jacobi.rounds[:2].max() == 5 and not (residual[:2] < 1).any() and (residual[2:] < 1e-3).all()


# --- The student


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_log_determinant_of_the_student_is_autograds(blocks):
    student = Student(make_flow(blocks)).double()
    z = normal(2, 6, 4, dtype=torch.float64)
    x, log_scale = student.transform(z)
    assert torch.equal(x, student(z))
    for index in range(2):
        jacobian = torch.autograd.functional.jacobian(student, z[index : index + 1]).reshape(24, 24)
        assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_scale[index].sum(), rtol=0, atol=1e-10)


def test_a_new_student_does_one_jacobi_round_a_block():
    flow = make_flow(2, dropout=0.5).train()
    student, z = Student(flow), normal(3, 6, 4)
    with torch.no_grad():
        flow.eval()
        halfway = guessed_inverse(flow.blocks[1], z, z)[0]
        assert_close(student.train()(z), guessed_inverse(flow.blocks[0], halfway, halfway)[0])  # no dropout, even in training mode
        student.blocks[0].start.add_(1)
    assert not torch.equal(student.blocks[0].start, flow.blocks[0].start)  # a copy
    assert all(parameter.requires_grad for parameter in Student(flow.requires_grad_(False)).parameters())


def test_the_loss_is_zero_for_the_perfect_inverse_and_teaches_a_student():
    flow, x = make_flow(2), 0.5 * normal(64, 6, 4)
    assert student_loss(flow.inverse, flow, x).max() < 1e-9
    student = Student(flow)
    start = student_loss(student, flow, x)
    assert start.shape == (64,)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        student_loss(student, flow, x).mean().backward()
        optimizer.step()
    assert student_loss(student, flow, x).mean() < 0.5 * start.mean()
    assert all(parameter.grad is None for parameter in flow.parameters())


@pytest.mark.parametrize("both_ways", [False, True])
def test_which_tokens_a_student_reads(both_ways):
    "By autograd, of a single block: token n from z up to n, or from all of z."
    student, z = Student(make_flow(1, spread=1.0), both_ways).double(), normal(1, 6, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(student, z)[0, :, :, 0].abs().amax((1, 3))  # (tokens of x, tokens of z)
    later = torch.ones(6, 6).triu(1).bool()
    assert (jacobian.diagonal() > 0).all() and (jacobian[~later] > 0).all()
    assert (jacobian[later] > 0).any() == both_ways


def test_a_student_that_looks_both_ways_is_a_copy_without_the_mask():
    flow = make_flow(2, dropout=0.5)
    student, causal = Student(flow, both_ways=True).train(), Student(flow)
    assert not any(layer.causal or layer.dropout for block in student.blocks for layer in block.transformer.layers)
    assert all(layer.causal for block in (*flow.blocks, *causal.blocks) for layer in block.transformer.layers)  # the flow is as it was
    assert all(torch.equal(tensor, flow.blocks.state_dict()[name]) for name, tensor in student.blocks.state_dict().items())
    complaint(ValueError, lambda: student.transform(normal(1, 6, 4)), "no density", "use a causal one")
    z = normal(3, 6, 4)
    with torch.no_grad():
        assert student.bind(flow) is student and not torch.allclose(student(z), causal(z), atol=1e-3)
        for each in (student, causal):
            made = each(z, every_block=True)
            assert len(made) == 2 and torch.equal(made[1], each(z)) and torch.equal(made[0], guessed_inverse(each.blocks[1], z, z)[0])


def test_the_papers_loss_is_its_formula():
    flow, x = make_flow(3).double(), 0.5 * normal(5, 6, 4, dtype=torch.float64)
    with torch.no_grad():
        states = [x]  # Z_0 .. Z_n
        for block in flow.blocks:
            states.append(block(states[-1])[0])
    undo = lambda z, every_block: [z := block.inverse(z) for block in reversed(flow.blocks)]
    assert paper_student_loss(undo, flow, x, largest_noise=0.0).max() < 1e-20
    student = Student(flow, both_ways=True)
    torch.manual_seed(3)
    found = paper_student_loss(student, flow, x)
    torch.manual_seed(3)
    deviation = 0.3 * torch.rand(5, 1, 1)
    z = states[3] + deviation * torch.randn_like(x)
    assert deviation.min() > 0 and deviation.max() < 0.3 and len(deviation.unique()) == 5  # another for each image
    errors = []
    for number in (2, 1, 0):  # fed with its own outputs
        z = guessed_inverse(student.blocks[number], z, z)[0]
        errors.append((z - states[number]).square().mean((1, 2)))
    assert_close(found, sum(errors) / 3)
    found.sum().backward()
    assert all(parameter.grad is None for parameter in flow.parameters()) and student.blocks[2].start.grad.abs().max() > 0


def test_the_papers_loss_teaches_a_student():
    flow, x = make_flow(2), 0.5 * normal(64, 6, 4)
    student = Student(flow, both_ways=True)
    start = student_loss(student, flow, x).mean()
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        paper_student_loss(student, flow, x, largest_noise=0.05).mean().backward()
        optimizer.step()
    assert student_loss(student, flow, x).mean() < 0.5 * start


# --- Ways back of a model


def ways(model: Farmer) -> dict:
    return {"exact": None, "jacobi": Jacobi(), "student": Student(model.flow)}


@pytest.mark.parametrize("way", ["exact", "jacobi", "student"])
def test_the_certificate_says_what_the_flow_says(way):
    model = small().double()
    latents, inverse = model.sample_latents(LABELS, generator=seeded()), ways(model)[way]
    images = model.decode(latents, inverse=inverse)
    certificate = certify(model, images, latents, LABELS)
    reached = model.encode(images)
    off = torch.cat([reached.informative - latents.informative, reached.redundant - latents.redundant], -1)
    assert_close(certificate.residual, off.abs().amax((1, 2)).detach())
    assert_close(certificate.rms_residual, off.square().mean((1, 2)).sqrt().detach())
    assert_close(certificate.log_prob, model.log_prob(images, LABELS).detach())
    assert certificate.residual.max() > 0.01 if way == "student" else certificate.residual.max() < 1e-3
    assert_close(certify(model, images, latents).log_prob, model.log_prob(images).detach())
    assert torch.equal(images, model.decode(latents, inverse=inverse)) and not images.requires_grad and "\n" not in certificate.summary()


def test_ways_back_sample_alike():
    model = small()
    draws = {name: model.sample(LABELS, inverse=way, generator=seeded()) for name, way in ways(model).items()}
    assert_close(draws["jacobi"], draws["exact"], rtol=0, atol=1e-4)
    assert not torch.allclose(draws["student"], draws["exact"], atol=1e-3)
    assert not torch.equal(model.sample(LABELS, inverse=Jacobi(0.3), generator=seeded()), draws["jacobi"])
    assert torch.equal(model.sample(LABELS, inverse=lambda z: model.flow.inverse(z), generator=seeded()), draws["exact"])  # any function


def test_ways_back_that_cannot_be_are_refused_before_anything_is_drawn():
    model, latents = small(), small().encode(clean_images())
    with mock.patch.object(model.prior, "sample", side_effect=AssertionError("drawn in vain")):
        for wrong in ("student", Jacobi, Student):  # a class is no way back yet
            complaint(ValueError, lambda: model.sample([0], inverse=wrong), "inverse must be None")
        complaint(ValueError, lambda: model.sample([0], inverse=Jacobi(1e-12)), "resolution of torch.float32")
        complaint(ValueError, lambda: model.sample([0], inverse=Student(small(flow_blocks=3).flow)), "another architecture")
        complaint(ValueError, lambda: model.sample([0], inverse=Student(model.flow).double()), "torch.float64", "student.to")
    complaint(ValueError, lambda: Jacobi("fine"), "tolerance must be a finite number, above 0")
    complaint(ValueError, lambda: certify(model, clean_images(), latents, [0, 1]), "2 labels", "6 images")
    complaint(ValueError, lambda: certify(model, clean_images()[:1], latents), "(1, 1, 4, 4)", "6 latents")


@pytest.mark.parametrize("way", ["exact", "jacobi", "student"])
def test_ways_back_under_autocast_return_full_precision(way):
    model = small()
    latents, inverse = model.sample_latents(LABELS, generator=seeded()), ways(model)[way]
    with torch.autocast("cpu", torch.bfloat16):
        images = model.decode(latents, inverse=Jacobi(1e-2) if way == "jacobi" else inverse)
    assert images.dtype == torch.float32
    assert_close(images, model.decode(latents, inverse=inverse), rtol=0, atol=0.2)


# --- Memory


class LiveBytes(TorchDispatchMode):
    "Counts the bytes of storages that operations made and that are still alive."

    def __init__(self):
        super().__init__()
        self.owners, self.live, self.most = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.adopt(tensor)
        return result

    def adopt(self, tensor):
        key, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        if key not in self.owners:
            self.owners[key] = 0
            self.live += size
            self.most = max(self.most, self.live)
        self.owners[key] += 1
        weakref.finalize(tensor, self.release, key, size)

    def release(self, key, size):
        self.owners[key] -= 1
        if not self.owners[key]:
            del self.owners[key]
            self.live -= size


def test_exact_inversion_holds_its_cache_and_nothing_that_grows(monkeypatch):
    tokens, batch, width = 40, 3, 32
    flow, z, at_token = make_flow(2, tokens=tokens, width=width), normal(3, tokens, 4), []
    step = type(flow.blocks[0].transformer).step
    with LiveBytes() as memory:
        monkeypatch.setattr(type(flow.blocks[0].transformer), "step", lambda *args: (at_token.append(memory.live), step(*args))[1])
        flow.inverse(z)
    first, second = at_token[:tokens], at_token[tokens:]
    assert len(second) == tokens and len(set(first[2:])) == len(set(second[2:])) == 1  # the same at every token
    cache = 2 * batch * width * tokens * 4  # keys and values of one layer, float32
    image = batch * tokens * 4 * 4
    assert cache <= first[-1] <= cache + 8 * image + width * tokens * 4 + 20 * batch * width * 4  # the cache, and little beside it
