"""What panels, variables, links and annotations of this project have in common."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from ._queries import JOB, PARTITION, chosen, increase

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "usp-daemon"

GOOD, WARNING, BAD, PLAIN, MUTED = "green", "orange", "red", "blue", "gray"


class Query(NamedTuple):
    """One query and how its series are called."""

    expression: str
    legend: str = ""


class Level(NamedTuple):
    """From ``at`` on the colour is ``colour``; None is where it begins."""

    at: float | None
    colour: str


def above(warning: float, bad: float | None = None) -> tuple[Level, ...]:
    """Green, orange from ``warning`` on, red from ``bad`` on."""
    levels = (Level(None, GOOD), Level(warning, WARNING))
    return levels if bad is None else (*levels, Level(bad, BAD))


def bad_above(bad: float) -> tuple[Level, ...]:
    """Green, red from ``bad`` on."""
    return (Level(None, GOOD), Level(bad, BAD))


def bad_below(least: float) -> tuple[Level, ...]:
    """Red, green from ``least`` on."""
    return (Level(None, BAD), Level(least, GOOD))


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 12,
    height: int = 8,
    levels: Sequence[Level] = (),
    stacked: bool = False,
    least: float | None = None,
    most: float | None = None,
    logarithmic: bool = False,
    steps: bool = False,
    bands: Sequence[tuple[str, str]] = (),
) -> Builder[models.Panel]:
    """Lines over time. ``levels`` are drawn as dashed lines; ``bands`` fills between the series of two legends."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .datasource(DATASOURCE)
        .span(width)
        .height(height)
        .fill_opacity(20 if stacked else 0)
        .show_points(common_models.VisibilityMode.NEVER)
        .tooltip(
            common.VizTooltipOptions()
            .mode(common_models.TooltipDisplayMode.MULTI)
            .sort(common_models.SortOrder.DESCENDING)
        )
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .calcs([])
        )
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    if steps:
        panel.line_interpolation(common_models.LineInterpolation.STEP_AFTER)
    if least is not None:
        panel.min(least)
    if most is not None:
        panel.max(most)
    if logarithmic:
        panel.scale_distribution(common.ScaleDistributionConfig().type(common_models.ScaleDistribution.LOG).log(10))
    if levels:
        panel.thresholds(_thresholds(levels)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_models.GraphThresholdsStyleMode.DASHED)
        )
    for upper, lower in bands:
        panel.override_by_name(
            upper,
            [
                models.DynamicConfigValue(id_val="custom.fillBelowTo", value=lower),
                models.DynamicConfigValue(id_val="custom.fillOpacity", value=15),
            ],
        )
    return _with_queries(panel, queries)


def single(
    title: str,
    description: str,
    unit: str,
    query: Query,
    *,
    width: int = 4,
    height: int = 4,
    levels: Sequence[Level] = (Level(None, PLAIN),),
    names: Mapping[str, tuple[str, str]] | None = None,
    decimals: int | None = None,
    as_text: bool = False,
) -> Builder[models.Panel]:
    """The last value in large figures. ``names`` gives text and colour of single values; ``as_text`` shows the name of
    the series in place of the value.
    """
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .datasource(DATASOURCE)
        .span(width)
        .height(height)
        .thresholds(_thresholds(levels))
        .graph_mode(common_models.BigValueGraphMode.NONE if as_text else common_models.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    )
    if as_text:
        panel.text_mode(common_models.BigValueTextMode.NAME)
    if decimals is not None:
        panel.decimals(decimals)
    if names:
        panel.mappings([_mapping(names)])
    return _with_queries(panel, (query,))


def timeline(
    title: str,
    description: str,
    *queries: Query,
    names: Mapping[str, tuple[str, str]],
    width: int = 24,
    height: int = 8,
) -> Builder[models.Panel]:
    """States over time, a row for each series; ``names`` gives text and colour of the values."""
    panel = (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .unit("short")
        .datasource(DATASOURCE)
        .span(width)
        .height(height)
        .mappings([_mapping(names)])
        .merge_values(True)
        .show_value(common_models.VisibilityMode.AUTO)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_models.LegendDisplayMode.LIST)
            .placement(common_models.LegendPlacement.BOTTOM)
            .calcs([])
        )
    )
    return _with_queries(panel, queries)


def heat(title: str, description: str, unit: str, histogram: str, *, width: int = 12) -> Builder[models.Panel]:
    """How a histogram's observations are spread over time."""
    query = (
        prometheus.Dataquery()
        .expr(f"sum by (le) ({increase(histogram + '_bucket')})")
        .legend_format("{{le}}")
        .format(PromQueryFormat.HEATMAP)
        .ref_id("A")
    )
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(width)
        .height(8)
        .calculate(False)
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(32))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .with_target(query)
    )


def variables(*names: str) -> list[Builder[models.VariableModel]]:
    """The data source, job and instance, and those of ``topic``, ``partition`` and ``symbol`` that are asked for."""
    made: list[Builder[models.VariableModel]] = [
        dashboard.DatasourceVariable("datasource").type("prometheus").label("Data source"),
        _choice("job", "Job", "label_values(usp_build_info, job)"),
        _choice("instance", "Replica", 'label_values(usp_build_info{job=~"$job"}, instance)'),
    ]
    topic = f"label_values({chosen('usp_consumer_lag_records')}, topic)"
    of_topic = 'topic=~"$topic"'
    partition = f"label_values({chosen('usp_consumer_lag_records', JOB, of_topic)}, partition)"
    for name in names:
        if name == "topic":
            made.append(_choice("topic", "Topic", topic))
        elif name == "partition":
            made.append(_choice("partition", "Partition", partition))
        elif name == "symbol":
            symbol = f"label_values({chosen('usp_symbol_value')}, symbol)"
            made.append(_choice("symbol", "Symbol", symbol, several=False))
    return made


def links() -> list[Builder[models.DashboardLink]]:
    """To the other dashboards of this project, with the same time and selection."""
    return [
        dashboard.DashboardLink("usp-daemon")
        .type(models.DashboardLinkType.DASHBOARDS)
        .tags([TAG])
        .as_dropdown(False)
        .include_vars(True)
        .keep_time(True)
    ]


class _PrometheusAnnotation(models.AnnotationQuery):
    """With the fields by which Grafana's Prometheus source words an annotation; the schema leaves them open."""

    def __init__(self, *, title: str, tags: str, **fields: Any) -> None:
        super().__init__(**fields)
        self.title_format, self.tag_keys = title, tags

    def to_json(self) -> dict[str, object]:
        return {**super().to_json(), "titleFormat": self.title_format, "tagKeys": self.tag_keys, "step": "60s"}


class _Annotation(Builder[models.AnnotationQuery]):
    def __init__(self, name: str, expression: str, colour: str, title: str, tags: str, *, shown: bool) -> None:
        self._made = _PrometheusAnnotation(
            title=title,
            tags=tags,
            name=name,
            datasource=DATASOURCE,
            enable=shown,
            icon_color=colour,
            expr=expression,
        )

    def build(self) -> models.AnnotationQuery:
        return self._made


def annotations() -> list[Builder[models.AnnotationQuery]]:
    """Regime alarms, changes of the configuration and firing alerts, each to be switched off in the head."""
    alarms = f"sum by (kind) ({increase('usp_alarms_published_total')}) > 0"
    epochs = f"max by (job) (changes({chosen('usp_config_epoch')}[$__rate_interval])) > 0"
    firing = 'ALERTS{alertname=~"Usp.*",alertstate="firing",job=~"$job"}'
    return [
        _Annotation("Regime alarms", alarms, "purple", "Alarm: {{kind}}", "kind", shown=False),
        _Annotation("Configuration epochs", epochs, "blue", "New configuration epoch", "job", shown=True),
        _Annotation("Firing alerts", firing, "red", "{{alertname}}", "severity", shown=True),
    ]


def partition_query(metric: str, legend: str = "{{topic}}/{{partition}}") -> Query:
    """One gauge of each chosen partition; the replica that holds it last, where two have it for a moment."""
    return Query(f"max by (topic, partition) ({chosen(metric, PARTITION)})", legend)


def _choice(name: str, label: str, query: str, *, several: bool = True) -> Builder[models.VariableModel]:
    variable = (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.NATURAL_ASC)
    )
    return variable.multi(True).include_all(True).all_value(".+") if several else variable


def _thresholds(levels: Sequence[Level]) -> dashboard.ThresholdsConfig:
    steps = [models.Threshold(value=level.at, color=level.colour) for level in levels]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _mapping(names: Mapping[str, tuple[str, str]]) -> models.ValueMap:
    results = {
        value: models.ValueMappingResult(text=text, color=colour, index=index)
        for index, (value, (text, colour)) in enumerate(names.items())
    }
    return models.ValueMap(options=results)


def _with_queries(panel: Any, queries: Sequence[Query]) -> Any:
    for letter, query in zip("ABCDEFGHIJ", queries, strict=False):
        panel.with_target(prometheus.Dataquery().expr(query.expression).legend_format(query.legend).ref_id(letter))
    return panel
