//! The images made by other software, when they are at hand.
//!
//! Owns: where they are (`VHDKIT_REAL_IMAGES`), what each decodes to, and which files form its chain.

use std::path::{Path, PathBuf};

/// One image: its chain and what the whole virtual disk holds.
pub struct RealImage {
    /// Its file and those of its parents, leaf first, relative to the folder of all images.
    pub chain: &'static [&'static str],
    /// The virtual size in bytes.
    pub size: u64,
    /// SHA-256 of the whole virtual disk, lower case.
    pub sha256: &'static str,
}

/// The folder of the images, or `None` after saying so.
pub fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("VHDKIT_REAL_IMAGES").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("SKIPPED: VHDKIT_REAL_IMAGES does not name a folder of images made by other software");
    }
    folder
}

impl RealImage {
    /// Its chain below `folder`, leaf first.
    pub fn paths(&self, folder: &Path) -> Vec<PathBuf> {
        self.chain.iter().map(|name| folder.join(name)).collect()
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.chain[0]
    }

    /// The image whose leaf is `name`.
    ///
    /// # Panics
    /// When there is none.
    pub fn named(name: &str) -> &'static Self {
        ALL.iter().find(|image| image.name() == name).unwrap_or_else(|| panic!("no image {name}"))
    }
}

const fn image(chain: &'static [&'static str], size: u64, sha256: &'static str) -> RealImage {
    RealImage { chain, size, sha256 }
}

/// Every image with known contents, as several independent readers agree on them.
pub static ALL: &[RealImage] = &[
    image(&["DiscUtils/swap.vhdx"], 10_737_418_240, "60dd30b4c74361427d1089510cabb36e2eeda0cc4747f467ea43173acd358c49"),
    image(&["dfvfs/ext2.vhd"], 4_212_736, "870be7ae16c1fa8faab05c6eb9205dc9a7ae35c5f552c5cf8a267c0bc6a5cb99"),
    image(&["dfvfs/ext2.vhdx"], 4_194_304, "a6c2f0e39afe6c6ab432ca5465349fcefe8dc944398e97b2d957d3f89dbb5d80"),
    image(
        &["dfvfs/ntfs-differential.vhd", "dfvfs/ntfs-parent.vhd"],
        4_194_304,
        "b7922a46a6b08fa4f4fc0c51a25d5587d1d49f15cfade45ca740dd07110ae144",
    ),
    image(
        &["dfvfs/ntfs-differential.vhdx", "dfvfs/ntfs-parent.vhdx"],
        4_194_304,
        "1ef1fb5360247aa7d36a38415bc7bf6e1e52f62af5e6bd1283815e82584c7efc",
    ),
    image(&["dfvfs/ntfs-dynamic.vhd"], 4_194_304, "8b10b52e3d1e76075d05a5101a6536b9fa8376a5b8f7c22f502d0987d165c876"),
    image(&["dfvfs/ntfs-dynamic.vhdx"], 4_194_304, "b92731f8e4bf3532418444d22a9086823a8122569500acd09cd8d2ce20eb98e9"),
    image(&["dfvfs/ntfs-fixed.vhd"], 4_194_304, "cd81fade3878f1b2957f1ece168201876bdf4e90c9b30f60c2f232eba5fea76c"),
    image(&["dfvfs/ntfs-fixed.vhdx"], 4_194_304, "5237dd895f38052344e2ef35a207fe9df08cd18d17b6ea857a1b93cc475e1f2e"),
    image(&["dfvfs/ntfs-parent.vhd"], 4_194_304, "c91d1766dd4b3327f33a082cbf958d3566dd84a3d71c2473a5ae6155e53171de"),
    image(&["dfvfs/ntfs-parent.vhdx"], 4_194_304, "c5523065bc6ef82267be56c5f8888e2876ead8ba7edba2a65a3da8b076231b68"),
    image(
        &["openvmm/dirty-unapplied.replayed.vhdx"],
        67_108_864,
        "06dfd38546ff6f3c95ae22b76ce2234ea7638529409781fb1187b9caf61ca240",
    ),
    image(
        &["openvmm/dirty-unapplied.vhdx"],
        67_108_864,
        "06dfd38546ff6f3c95ae22b76ce2234ea7638529409781fb1187b9caf61ca240",
    ),
    image(&["openvmm/dyn-4k.vhdx"], 67_108_864, "cdf29dcb8e2da12be876a29c09dae11b373c67e01b6abf7dc5f655ea63cb0256"),
    image(&["openvmm/dyn-trims.vhdx"], 67_108_864, "7baa93c8e67acbb8ba8a99f2ad2b1afb69b1171771e1c5f973eb2718e3fcc069"),
    image(&["qemu/dyn-1M.vhdx"], 67_108_864, "1bf7f44d528e4de2a60e51071d0c88fafe08d3d66e5147fec2f63dd05f1b33f6"),
    image(&["qemu/dyn-chs.vhd"], 41_953_280, "795fd89013ca60a01e67efd82a3ae071a76a3c58e8b12927bffed5af6399d733"),
    image(&["qemu/fixed-chs.vhd"], 5_257_216, "0ec634396a7317307a510c968d75513c0ec434f631a871d1edf30a104c6125e9"),
    image(
        &["virtualbox/diff1.vhd", "virtualbox/dyn.vhd"],
        10_485_760,
        "398ac5800e7eb252f146ca4bcfde4cd38ca16becf414e0176bad5d473be4bf8f",
    ),
    image(
        &["virtualbox/diff2.vhd", "virtualbox/diff1.vhd", "virtualbox/dyn.vhd"],
        10_485_760,
        "768a58117370016491e9887b779ca521b0413511c6dd383510a11a8e4d70a91c",
    ),
    image(&["virtualbox/dyn.vhd"], 10_485_760, "e4fab8a9ab0f6256045263809076904924a31eb3c173a88915d2d5e656382c07"),
    image(&["virtualbox/fixed.vhd"], 10_485_760, "e4fab8a9ab0f6256045263809076904924a31eb3c173a88915d2d5e656382c07"),
    image(&["plaso/image.vhd"], 104_448, "c6db12a7db548e193c29420c1b4533e4708b20c5033db5cc29ef075d48316d25"),
];
