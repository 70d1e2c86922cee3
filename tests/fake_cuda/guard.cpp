// A CUDA device that computes nothing, for PyTorch's CPU build.
//
// The CPU build knows the device type "cuda", but has neither a device guard nor hooks for it, and
// ends the process at the first differentiable operation on a fake tensor that says it is there.
// This library registers both; none of their functions does anything. It must be loaded before
// `import torch`, see device.py.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

constexpr auto kType = c10::DeviceType::CUDA;

// Always device 0: autograd compares the streams of neighbouring nodes, and an index of -1, which
// PyTorch's own no-op guard names, is not an index of a tensor's device.
struct Guard final : c10::impl::NoOpDeviceGuardImpl<kType> {
  static c10::Device device() { return {kType, 0}; }
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, device()); }

  c10::Device exchangeDevice(c10::Device) const override { return device(); }
  c10::Device getDevice() const override { return device(); }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }

  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag)
      const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};

// Not C10_REGISTER_GUARD_IMPL: its registrar refuses a second guard, and an extension of PyTorch
// that was loaded earlier may have set one.
const bool registered = [] {
  static const Guard guard;
  c10::impl::device_guard_impl_registry[static_cast<size_t>(kType)].store(&guard);
  return true;
}();

}  // namespace

namespace at {

// PyTorch looks for hooks of this very name.
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}

  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  Device getDeviceFromPtr(void*) const override { return {kType, 0}; }
};

REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace at
