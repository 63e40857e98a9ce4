"""Pieces of PromQL that every dashboard uses: the selection by variables, rates, shares and quantiles."""

JOB = 'job=~"$job",instance=~"$instance"'
SYMBOL = JOB + ',symbol=~"$symbol"'
PARTITION = JOB + ',topic=~"$topic",partition=~"$partition"'


def chosen(metric: str, labels: str = JOB, extra: str = "") -> str:
    """The series of ``metric`` that the variables choose; ``extra`` is a further matcher."""
    return f"{metric}{{{labels}{',' if extra else ''}{extra}}}"


def rate(metric: str, labels: str = JOB, extra: str = "") -> str:
    """Increase a second of a counter."""
    return f"rate({chosen(metric, labels, extra)}[$__rate_interval])"


def increase(metric: str, labels: str = JOB, extra: str = "") -> str:
    """Increase of a counter within one point of the graph."""
    return f"increase({chosen(metric, labels, extra)}[$__rate_interval])"


def summed(expression: str, *by: str) -> str:
    """Sum of ``expression``, by labels if there are any."""
    return f"sum by ({', '.join(by)}) ({expression})" if by else f"sum({expression})"


def share(part: str, whole: str) -> str:
    """``part`` over ``whole``; no point, rather than NaN, where the whole is zero."""
    return f"{part} / ({whole} > 0)"


def quantile(q: float, histogram: str, *by: str, labels: str = JOB) -> str:
    """A quantile of a histogram; no point where nothing was observed."""
    grouped = ", ".join(("le", *by))
    value = f"histogram_quantile({q:g}, sum by ({grouped}) (rate({histogram}_bucket{{{labels}}}[$__rate_interval])))"
    return f"{value} >= 0"
