"""An RTSP server for the tests (GStreamer's, by the system's Python): loops H.264 byte streams.

`python3 rtsp_server.py PORT RATE [--user NAME:PASSWORD] NAME=FILE ...` serves
rtsp://127.0.0.1:PORT/NAME; a FILE with %d in it stands for several, one after the other.
"""

import argparse

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


def stamped(pad, info):
    """A parsed byte stream has times of decoding alone; RTP sends those of showing."""
    buffer = info.get_buffer()
    buffer.pts = buffer.dts
    return Gst.PadProbeReturn.OK


def configured(factory, media):
    parse = media.get_element().get_by_name("parse")
    parse.get_static_pad("src").add_probe(Gst.PadProbeType.BUFFER, stamped)


def secured(server, user):
    name, _, password = user.partition(":")
    auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(name, password), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("user", "media.factory.access", True)
    permissions.add_permission_for_role("user", "media.factory.construct", True)
    return permissions


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("port")
    parser.add_argument("rate", type=int)
    parser.add_argument("--user", default="")
    parser.add_argument("streams", nargs="+")
    given = parser.parse_args()
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(given.port)
    permissions = secured(server, given.user) if given.user else None
    for stream in given.streams:
        name, _, files = stream.partition("=")
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(
            f"( multifilesrc location={files} loop=true caps=video/x-h264,stream-format=byte-stream"
            f",framerate={given.rate}/1 ! h264parse name=parse "
            "! rtph264pay name=pay0 pt=96 )"
        )
        factory.set_shared(True)
        factory.connect("media-configure", configured)
        if permissions is not None:
            factory.set_permissions(permissions)
        server.get_mount_points().add_factory(f"/{name}", factory)
    if not server.attach(None):
        raise SystemExit(f"port {given.port} is taken")
    print("ready", flush=True)
    GLib.MainLoop().run()


main()
