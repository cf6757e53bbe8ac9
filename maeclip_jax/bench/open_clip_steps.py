"""open_clip's train step, a line in and a line out: started by `bench.peer` with the Python that has torch.

Forward with the contrastive loss, backward and AdamW, under autocast in bfloat16, on the CPU or the first GPU. Imports
nothing of the project.
"""

import json
import os
import sys
import time


def build(task: dict):
    """(step, what it is, number of parameters) of the model, batch and optimizer that `task` describes."""
    import open_clip
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(cores)
    image, text, optim = task["image"], task["text"], task["optim"]
    gelu = {"approximate": "tanh"} if image["activation"] == "gelu_tanh" else None
    model = open_clip.model.CLIP(
        task["embed"],
        open_clip.CLIPVisionCfg(
            layers=image["depth"], width=image["width"], head_width=image["width"] // image["heads"],
            patch_size=image["patch"], image_size=image["size"], no_ln_pre=True, act_kwargs=gelu,
        ),
        open_clip.CLIPTextCfg(
            layers=text["depth"], width=text["width"], heads=text["heads"], context_length=text["length"],
            vocab_size=text["vocab"], no_causal_mask=not text["causal"], act_kwargs=gelu,
        ),
        quick_gelu=image["activation"] == "quick_gelu",
    ).to(device)  # fmt: skip
    steps_by = torch.optim.AdamW(
        model.parameters(), lr=optim["lr"], betas=(optim["b1"], optim["b2"]), eps=optim["eps"],
        weight_decay=optim["weight_decay"],
    )  # fmt: skip
    loss_of = open_clip.ClipLoss()
    pictures = torch.randn(task["batch"], 3, image["size"], image["size"], device=device)
    words = torch.randint(0, text["vocab"], (task["batch"], text["length"]), device=device)

    def step() -> float:
        steps_by.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=task["dtype"] == "bfloat16"):
            loss = loss_of(*model(pictures, words)[:3])
        loss.backward()
        steps_by.step()
        return loss.item()

    about = f"open_clip {open_clip.__version__}, torch {torch.__version__}, {device}, {cores} threads, {task['dtype']}"
    return step, about, sum(p.numel() for p in model.parameters())


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # what libraries print goes to stderr
    os.dup2(2, 1)

    def say(**values) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        step, about, parameters = build(json.loads(sys.argv[1]))
    except ImportError as e:
        say(error=f"{sys.executable} has no {e.name}; valid: --peer_python=PYTHON where open_clip_torch is installed")
        return
    say(peer=about, parameters=parameters)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        loss = step()
        say(**{"seconds": time.perf_counter() - wall, "processor seconds": time.process_time() - cpu, "loss": loss})


if __name__ == "__main__":
    main()
