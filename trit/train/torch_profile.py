"""What `--profile` records: a few training steps as a trace and a table of operators. Beside the counted program, not in it."""

import torch

STEPS = 5
TRACE, SUMMARY = "trace.json.gz", "profile.txt"


def with_profile(backend, folder, first, log):
    """`backend` that records STEPS steps after the first `first` ones, on rank 0, in `folder`: TRACE for ui.perfetto.dev, SUMMARY with
    the operators that take longest, in milliseconds (their own time on the device, without what they call)."""
    if backend.rank:
        return backend
    on_gpu = torch.cuda.is_available()
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on_gpu
    profile, taken = torch.profiler.profile(activities=activities), [0]

    def step(*arguments):
        if taken[0] == first:
            profile.start()
        result = backend.step(*arguments)
        taken[0] += 1
        if taken[0] == first + STEPS:
            profile.stop()
            profile.export_chrome_trace(str(folder / TRACE))
            order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
            rows = profile.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=60)
            (folder / SUMMARY).write_text(f"{STEPS} steps after {first}, warm-up steps counted\n{rows}\n")
            log.line(f"profile: {STEPS} steps in {folder}/{TRACE} (open it in ui.perfetto.dev), operators in {folder}/{SUMMARY}")
        return result

    return backend._replace(step=step)
