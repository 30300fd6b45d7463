"""Each asset in a pool of its own, by hand and by a function over all of them."""

from dagster import AssetsDefinition, Definitions, OpDefinition, asset


@asset(
    key=["my_group", "my_asset"],
    pool="my_group_my_asset",  # Unique pool per asset
)
def my_asset():
    pass


@asset
def asset_a():
    pass


@asset
def unlimited_asset():
    pass


def _add_pool_to_asset(asset_def: AssetsDefinition) -> AssetsDefinition:
    """Transform an asset to add a pool based on its key."""
    original_op = asset_def.op
    key = next(iter(asset_def.specs)).key
    pool_name = "_".join(key.path)
    new_op = OpDefinition(
        compute_fn=original_op._compute_fn,
        name=original_op.name,
        ins=dict(original_op.ins),
        outs=dict(original_op.outs),
        description=original_op.description,
        config_schema=original_op._config_schema,
        required_resource_keys=original_op.required_resource_keys,
        tags=original_op.tags,
        retry_policy=original_op.retry_policy,
        pool=pool_name,
    )
    return AssetsDefinition(
        keys_by_input_name=asset_def.keys_by_input_name,
        keys_by_output_name=asset_def.keys_by_output_name,
        node_def=new_op,
        partitions_def=asset_def.partitions_def,
        can_subset=asset_def.can_subset,
    )


def apply_per_asset_concurrency(assets: list[AssetsDefinition]) -> list[AssetsDefinition]:
    """Apply per-asset concurrency pools to all assets."""
    return [_add_pool_to_asset(each) for each in assets]


defs = Definitions(assets=[*apply_per_asset_concurrency([asset_a]), my_asset, unlimited_asset])
