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
            if node.op == "call_function" and _devices_of(node):
                _remove_device(graph, node)
        module.recompile()
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.CONSTANT_TENSOR:
            spec.kind, spec.persistent = InputKind.BUFFER, False
    program.validate()


def bound_nodes(program: ExportedProgram) -> list[str]:
    """Return the names of nodes that are bound to a device."""
    return [
        node.name for module in _graphs(program) for node in module.graph.nodes if _devices_of(node)
    ]


def _graphs(program: ExportedProgram) -> Iterator[GraphModule]:
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            yield module


def _devices_of(node: Node) -> list[object]:
    """Return the devices among a node's arguments; an autocast region has its type's name."""
    found: list[object] = [
        leaf
        for leaf in pytree.tree_leaves((node.args, node.kwargs))
        if isinstance(leaf, torch.device)
    ]
    if node.target is torch.ops.higher_order.wrap_with_autocast:
        found.append(node.args[0])
    return found


def _remove_device(graph: Graph, node: Node) -> None:
    if node.target is _aten.to.device:  # its only required argument
        node.target, node.args = _aten.to.dtype, (node.args[0], *node.args[2:])
        return
    node.kwargs = {key: value for key, value in node.kwargs.items() if key != "device"}
    if any(isinstance(one.meta.get("val"), Tensor) for one in node.all_input_nodes):
        return  # follows its input
    made = node.meta.get("val")
    beside = _first_tensor(graph)
    if not isinstance(made, Tensor) or beside is None:
        return
    # Made on the CPU, as no input says where: it follows a tensor that does.
    with graph.inserting_after(node):
        like = graph.call_function(_aten.new_empty.default, (beside, [0]), {"dtype": made.dtype})
    with graph.inserting_after(like):
        moved = graph.call_function(_aten.to.other, (node, like))
    like.meta["val"], moved.meta["val"] = made.new_empty([0]), made
    node.replace_all_uses_with(moved, delete_user_cb=lambda user: user is not moved)


def _first_tensor(graph: Graph) -> Node | None:
    """Return the first input of a graph that is a tensor."""
    for node in graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor):
            return node
    return None
