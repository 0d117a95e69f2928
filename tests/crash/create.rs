//! Bug this finds: a half-created image that opens and claims to be a good one. (By name nothing half-made ever shows:
//! files are made beside their name and renamed. This is about storages handed in by a library user.)

use crate::chains::{self, ChainSpec, LayerSpec};
use vhdkit::storage::Access;
use vhdkit::storage::sim::{ExploreOptions, SimDisk};
use vhdkit::{Format, ImageId};

fn explore(format: Format, base_fixed: bool, parent: Option<ImageId>) {
    let (size, block_size) = if format == Format::Vhd { (64 << 10, 8192) } else { (3 << 20, 1 << 20) };
    let layers = vec![LayerSpec { size, block_size, edits: Vec::new() }];
    let spec = ChainSpec { format, sector: 512, base_fixed, layers };
    let disk = SimDisk::new();
    chains::create_layer(disk.file("new"), &spec, 0, parent);
    let done = disk.position();
    let report = disk.explore(&ExploreOptions::seeded(crate::seed()), |state| {
        let layer = vhdkit::chain::Layer::open(state.disk().file("new"), Access::Read);
        match layer {
            Err(error) if state.point() >= done => Err(format!("a finished image does not open: {error}")),
            Err(_) => Ok(()),
            Ok(layer) if layer.image().virtual_size() != size => Err("another size".to_owned()),
            Ok(layer) if parent.is_some() => {
                let link = layer.image().parent_link().ok_or("lost its parent")?;
                if link.accepts(parent.unwrap()) { Ok(()) } else { Err("another parent".to_owned()) }
            }
            Ok(layer) => {
                let chain = vhdkit::chain::Chain::from_layers(vec![layer]).map_err(|error| error.to_string())?;
                let zero = chains::read_all(&chain).iter().all(|&byte| byte == 0);
                if zero { Ok(()) } else { Err("a new disk shows something else than zeros".to_owned()) }
            }
        }
    });
    println!("create {format} fixed={base_fixed}: {} crash states at {} points", report.states, report.points);
    report.assert_ok();
    assert!(report.states >= 6, "the workload writes something");
}

#[test]
fn a_created_image_is_whole_or_does_not_open() {
    explore(Format::Vhd, false, None);
    explore(Format::Vhd, true, None);
    explore(Format::Vhd, false, Some(ImageId::Vhd([7; 16])));
    explore(Format::Vhdx, false, None);
    explore(Format::Vhdx, true, None);
    explore(Format::Vhdx, false, Some(ImageId::Vhdx(vhdkit::Guid::from_u128(7))));
}
