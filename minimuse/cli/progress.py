from contextlib import ExitStack

from tqdm import tqdm


def show_progress(records, row: int = 0) -> None:
    """Progress bars: loss, accuracy and the like, smoothed a little. `row`: how far down, where processes share a screen."""
    bar, seen = None, {}
    with ExitStack() as bars:  # closes them, whatever happens
        for record in records:
            if bar is None:
                seen, bar = (
                    {},
                    tqdm(
                        total=record.steps,
                        initial=record.step - 1,
                        desc=record.stage,
                        mininterval=1.0,
                        position=row,
                    ),
                )
                bars.enter_context(bar)
            bar.update(1)
            if (
                record.step % 10 == 0 or record.step == record.steps
            ):  # reading a value waits for the device
                for k, v in record.metrics.items():
                    seen[k] = 0.8 * seen.get(k, float(v)) + 0.2 * float(v)
                bar.set_postfix_str(", ".join(f"{k} {v:.3g}" for k, v in seen.items()))
            if (
                record.step == record.steps
            ):  # now: the next record comes after the next stage's preparation
                bar = bar.close()  # None
