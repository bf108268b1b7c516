"""A training epoch of xaimed against the MedMNIST authors' script, in one process, turn by turn.

    python benchmarks/training.py [--epochs 3] [--seeds 3] [--train-images 1024] [--threads 2] [--dataset pneumoniamnist] [--precision auto]

Both sides: ResNet-18 with a 3x3 stem, three channels, batch 128, Adam with learning rate 0.001 divided by 10 at half and at three quarters of the epochs, no augmentation, the epoch with the best validation AUC.
Theirs is written here from the published description (Yang et al. 2023, MedMNIST v2, and its experiments repository): `medmnist` data sets read image by image through PIL, ToTensor and Normalize(0.5, 0.5),
a DataLoader in the main process, float32, and after every epoch loss, AUC and accuracy on the training, validation and test images.
Ours: the split as one array, the recipe `medmnist`, the precision that `auto` takes here, validation after every epoch, best.pt and last.pt written and synced.

Printed: seconds of an epoch (median, fastest, slowest) with and without what follows the training steps, by the clock and by the processor's own count (which neighbours on a busy machine disturb less), their ratios,
and the test AUC of each side over the seeds. Then two verdicts: whether the whole epoch is at least 2.3 times as fast by the clock, and whether the test AUC is not lower: the mean difference of pairs with the same seed, and its standard error.
With --train-images only so many images are trained on, on both sides: seconds then are not those of a whole epoch, the ratio nearly is (theirs still evaluates every image of the other splits); 0 takes all.
How long it takes: seeds x epochs x (their epoch + ours), as the first lines printed say. An epoch of all 4,708 images is minutes on two CPU cores, so the default is 1,024 of them;
`--seeds 3 --train-images 0 --epochs 100`, the published training, is for a GPU.
Prediction, written before the first run: 1.9 times faster without evaluation (bf16 against float32), 2.7 times with it (theirs passes 5,856 images more).
"""
import argparse
import copy
import math
import os
import statistics
import tempfile
import time
from pathlib import Path

import medmnist
import numpy as np
import torch
import torchvision
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms

from xaimed.checkpoint import training_state
from xaimed.config import device_name, resolve_device, resolve_path
from xaimed.data import load_medmnist_dataset, make_loader, build_transforms
from xaimed.models import build_model
from xaimed.train import RECIPES, count_steps, is_better, make_loss, make_optimizer, make_scaler, make_schedule, predict_logits, resolve_precision, train_one_epoch, validate_one_epoch, write_epoch

BATCH, ASKED = 128, 2.3   # images; how many times as fast an epoch is asked to be


class Theirs:
    "The authors' training, from its description."
    def __init__(self, args, seed):
        torch.manual_seed(seed)
        self.device, self.loss, self.best, self.kept = resolve_device(args.device), nn.CrossEntropyLoss(), -1.0, None
        as_tensor = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean=[.5], std=[.5])])
        kind = getattr(medmnist, medmnist.INFO[args.dataset]["python_class"])
        splits = {s: kind(split=s, root=str(args.data), transform=as_tensor, as_rgb=True, download=False) for s in ("train", "val", "test")}
        if args.train_images: splits["train"] = Subset(splits["train"], torch.randperm(len(splits["train"]), generator=torch.Generator().manual_seed(0))[:args.train_images].sort().values.tolist())  # as `take` draws them
        self.loaders = {s: DataLoader(d, batch_size=BATCH, shuffle=False) for s, d in splits.items()}
        self.shuffled = DataLoader(splits["train"], batch_size=BATCH, shuffle=True)
        net = torchvision.models.resnet18(num_classes=len(medmnist.INFO[args.dataset]["label"]))
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
        self.net = net.to(self.device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [math.ceil(share * args.epochs) for share in (.5, .75)], gamma=.1)

    def steps(self):
        "One pass over the training images."
        self.net.train()
        losses = []
        for x, y in self.shuffled:
            self.optimizer.zero_grad()
            loss = self.loss(self.net(x.to(self.device)), y.squeeze(1).long().to(self.device))
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())

    def look(self):
        "Their evaluation after an epoch: three splits; the best by validation AUC is kept."
        self.schedule.step()
        found = {s: self.auc(self.net, s) for s in ("train", "val", "test")}
        if found["val"] > self.best: self.best, self.kept = found["val"], copy.deepcopy(self.net)

    def auc(self, net, split):
        net.eval()
        scores, labels, losses = [], [], []
        with torch.no_grad():
            for x, y in self.loaders[split]:
                out = net(x.to(self.device))
                losses.append(self.loss(out, y.squeeze(1).long().to(self.device)).item())
                scores.append(out.softmax(1).cpu().numpy()); labels.append(y.numpy())
        scores, labels = np.concatenate(scores), np.concatenate(labels).squeeze(1)
        (scores.argmax(1) == labels).mean()
        return macro_auc(labels, scores)

    def result(self): return self.auc(self.kept, "test")


class Ours:
    "The same training by xaimed, part by part as `fit` does it."
    def __init__(self, args, seed):
        self.device, self.recipe, self.folder, self.history, self.best, self.kept = resolve_device(args.device), RECIPES["medmnist"], tempfile.TemporaryDirectory(), [], None, None
        self.precision = resolve_precision(args.precision, self.device)
        splits = {s: load_medmnist_dataset(args.dataset, s, data_dir=args.data, transform=build_transforms(28, rgb=True), verify="form") for s in ("train", "val", "test")}
        self.spec = splits["train"].spec
        if args.train_images: splits["train"] = splits["train"].take(args.train_images)
        self.loaders = {s: make_loader(d, batch_size=BATCH if s == "train" else 256, shuffle=s == "train", seed=seed, device=self.device) for s, d in splits.items()}
        self.net = build_model("resnet18", len(self.spec.classes), image_size=28, seed=seed).to(self.device, memory_format=torch.channels_last)
        optimizer = make_optimizer(self.net, self.recipe)
        schedule = make_schedule(optimizer, self.recipe, epochs=args.epochs, steps_per_epoch=count_steps(self.loaders["train"], self.net))
        self.parts = {"optimizer": optimizer, "scheduler": schedule, "scaler": make_scaler(self.precision, self.device)}
        self.about = {"model": {}, "dataset": self.spec.name, "task": self.spec.task, "classes": list(self.spec.classes), "options": {}}

    def steps(self):
        train_one_epoch(self.net, self.loaders["train"], make_loss(self.spec.task), self.parts["optimizer"], device=self.device, scheduler=self.parts["scheduler"], precision=self.precision, scaler=self.parts["scaler"])

    def look(self):
        "Validation, best and last checkpoint on the disk."
        val = validate_one_epoch(self.net, self.loaders["val"], make_loss(self.spec.task), device=self.device, task=self.spec.task, precision=self.precision)
        row = {k: 0.0 for k in ("lr", "train_loss", "train_accuracy", "seconds")} | {"epoch": len(self.history) + 1, **{f"val_{k}": val[k] for k in ("loss", "accuracy", "auc")}}
        if is_better(row, self.best, self.recipe.select): self.best, self.kept = row, copy.deepcopy(self.net)   # for the AUC below; the file is written by write_epoch
        self.history.append(row)
        state = {k: v.detach().cpu().contiguous() for k, v in self.net.state_dict().items()}
        write_epoch(Path(self.folder.name), {**self.about, "epoch": row["epoch"], "metrics": row, "state_dict": state}, training_state(self.parts, self.history, {}, self.device), self.recipe.select)

    def result(self):
        logits, labels = predict_logits(self.kept, self.loaders["test"], device=self.device)
        self.folder.cleanup()
        return macro_auc(labels.numpy(), logits.softmax(1).numpy())


def macro_auc(labels, scores):
    "Area under the ROC curve; the mean over one class against the rest when there are several."
    if scores.shape[1] == 2: return roc_auc_score(labels, scores[:, 1])
    return np.mean([roc_auc_score(labels == k, scores[:, k]) for k in range(scores.shape[1])])


def timed(side, call):
    "Seconds by the clock and by the processor."
    wait = (lambda: torch.cuda.synchronize(side.device)) if side.device.type == "cuda" else (lambda: None)
    wait()
    clock, cpu = time.perf_counter(), time.process_time()
    call()
    wait()
    return np.array([time.perf_counter() - clock, time.process_time() - cpu])


def report(name, theirs, ours):
    for unit, i in (("by the clock", 0), ("processor time", 1)):
        a, b = [v[i] for v in theirs], [v[i] for v in ours]
        def text(v): return f"{statistics.median(v):.1f} s ({min(v):.1f} to {max(v):.1f})"
        print(f"{name}, {unit}: theirs {text(a)}, ours {text(b)}, ratio of medians {statistics.median(a) / statistics.median(b):.2f}, of the fastest {min(a) / min(b):.2f}", flush=True)


def ratio_verdict(theirs, ours):
    "Whether the asked ratio of medians, by the clock, was reached."
    ratio = statistics.median(v[0] for v in theirs) / statistics.median(v[0] for v in ours)
    return f"whole epoch, ratio {ratio:.2f}: {'kept' if ratio >= ASKED else 'MISSED'}: >= {ASKED}"


def auc_verdict(theirs, ours):
    "Whether our mean AUC is lower than theirs by more than two standard errors of the difference; seeds are pairs."
    apart = np.subtract(ours, theirs)
    if len(apart) < 2: return f"test AUC, ours - theirs: {apart[0]:+.4f}: not judged, one seed has no standard error"
    error = apart.std(ddof=1) / len(apart) ** .5
    lower = apart.mean() < -2 * error
    return f"test AUC, ours - theirs: {apart.mean():+.4f}, standard error {error:.4f}, {len(apart)} seeds: {'MISSED' if lower else 'kept'}: not lower (by more than two standard errors)"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("epochs", 3), ("seeds", 3), ("train-images", 1024), ("threads", torch.get_num_threads()), ("dataset", "pneumoniamnist"), ("precision", "auto"), ("device", "auto"), ("data", os.environ.get("XAIMED_DATA_DIR", "data"))):
        parser.add_argument(f"--{name}", default=default, type=type(default))
    args = parser.parse_args()
    args.data = resolve_path(args.data)
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {device_name(args.device)}, {args.threads} threads, {args.dataset}, {args.train_images or 'all'} training images, ours in {resolve_precision(args.precision, resolve_device(args.device))}, load {os.getloadavg()[0]:.1f}", flush=True)
    steps, looks, aucs = {Theirs: [], Ours: []}, {Theirs: [], Ours: []}, {Theirs: [], Ours: []}
    for seed in range(args.seeds):
        sides = [Theirs(args, seed), Ours(args, seed)]
        for _ in range(args.epochs):
            for side in sides:
                steps[type(side)].append(timed(side, side.steps))
                looks[type(side)].append(timed(side, side.look))
        for side in sides: aucs[type(side)].append(side.result())
        print(f"seed {seed}: test AUC theirs {aucs[Theirs][-1]:.4f}, ours {aucs[Ours][-1]:.4f}; median seconds of the training steps {np.median([v[0] for v in steps[Theirs]]):.1f} and {np.median([v[0] for v in steps[Ours]]):.1f}", flush=True)
    report("training steps of an epoch", steps[Theirs], steps[Ours])
    whole = [[a + b for a, b in zip(steps[s], looks[s])] for s in (Theirs, Ours)]
    report("whole epoch (theirs evaluates three splits, ours validates and writes)", *whole)
    for side, values in aucs.items(): print(f"test AUC, {side.__name__.lower()}: {np.mean(values):.4f} sd {np.std(values, ddof=1) if len(values) > 1 else float('nan'):.4f} over {len(values)} seeds: {', '.join(f'{v:.4f}' for v in values)}")
    print(ratio_verdict(*whole))
    print(auc_verdict(aucs[Theirs], aucs[Ours]))


if __name__ == "__main__": main()
