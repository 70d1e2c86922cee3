"""Programs that run on any device: no device is recorded in their graphs.

Tracing records where a tensor was at that time: in the calls that make tensors (``arange``), in
assertions, and in constants, which ``module.to`` does not move. It also leaves out each call of
``contiguous`` that had nothing to do in the memory layout that the CPU's kernels return.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

_aten = torch.ops.aten


def remove_devices(program: ExportedProgram) -> None:
    """Change a program so that it runs where its parameters, buffers and input are.

    All of its tensors are taken to be on one device, as they were when it was traced.
    """
    for module in _graphs(program):
        graph = module.graph
        for node in list(graph.nodes):
            if node.target is _aten._assert_tensor_metadata.default:
                graph.erase_node(node)
            elif node.target is _aten.view.default:  # copies where the layout allows no view
                node.target = _aten.reshape.default
        graph.eliminate_dead_code()
        for node in list(graph.nodes):
            if _bound(node):
                _remove_device(graph, node)
        module.recompile()
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.CONSTANT_TENSOR:
            spec.kind, spec.persistent = InputKind.BUFFER, False
    program.validate()


def bound_operators(program: ExportedProgram) -> list[str]:
    """Return the operators of a program that are bound to a device, such as ``aten.arange``."""
    nodes = (node for module in _graphs(program) for node in module.graph.nodes)
    return [str(node.target) for node in nodes if _bound(node)]


def _graphs(program: ExportedProgram) -> Iterator[GraphModule]:
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            yield module


def _bound(node: Node) -> bool:
    """Return whether a node has a device among its arguments, or is an autocast region of one."""
    values = pytree.tree_leaves((node.args, node.kwargs))
    region = node.target is torch.ops.higher_order.wrap_with_autocast
    return region or any(isinstance(value, torch.device) for value in values)


def _remove_device(graph: Graph, node: Node) -> None:
    """Let a node's result be where its input is, or where other tensors are if it has none."""
    made, beside = node.meta.get("val"), _first_tensor(graph)
    has_input = any(isinstance(one.meta.get("val"), Tensor) for one in node.all_input_nodes)
    if not has_input and (beside is None or not isinstance(made, Tensor)):
        return  # stays bound
    node.kwargs = {key: value for key, value in node.kwargs.items() if key != "device"}
    if node.target is _aten.to.device:  # requires a device, as its second argument
        node.target, node.args = _aten.to.dtype, (node.args[0], *node.args[2:])
    if has_input:
        return
    assert isinstance(made, Tensor)
    # Made on the CPU, and copied to the others.
    with graph.inserting_after(node):
        like = graph.call_function(_aten.new_empty.default, (beside, [0]), {"dtype": made.dtype})
    with graph.inserting_after(like):
        moved = graph.call_function(_aten.to.other, (node, like))
    like.meta["val"], moved.meta["val"] = made.new_empty([0]), made
    node.replace_all_uses_with(moved, delete_user_cb=lambda user: user is not moved)


def _first_tensor(graph: Graph) -> Node | None:
    """Return the first input of a graph that is a tensor."""
    tensors: Iterator[Node] = (
        node
        for node in graph.nodes
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor)
    )
    return next(tensors, None)
