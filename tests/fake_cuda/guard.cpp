// A CUDA device that computes nothing, for PyTorch's CPU build.
//
// The CPU build knows the device type "cuda", but has neither a device guard nor hooks for it: it
// aborts at the first differentiable operation on a fake tensor of that device. This library
// registers both; none of their functions does anything. It must be loaded before `import torch`,
// see device.py.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

constexpr auto kType = c10::DeviceType::CUDA;

// Always device 0: autograd compares the streams of neighboring nodes. The base class returns
// index -1, which no tensor's device has.
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

const c10::impl::DeviceGuardImplRegistrar registrar(kType, new Guard());

}  // namespace

namespace at {

// The class name is the name under which PyTorch looks for the hooks.
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
